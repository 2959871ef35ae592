"""The numbers of the presets of single requests, with their sources: fitted parameters, no row of any trace.

Lognormal mixtures ((weight, log-mean, log-sd)) are fits of the project's study of the public traces; a `QuantileTable`
is a piecewise fit of this project, finer than a mixture of three lognormals. The Kolmogorov-Smirnov (KS) distance to
the source is given beside each. What no source gives is marked "judgement".
"""

from __future__ import annotations

from jaxsched.workloads.arrivals import AtOnce, DriftingRenewal, OnOff, Renewal, TickBatches
from jaxsched.workloads.generate import RequestSpec
from jaxsched.workloads.laws import (
    Exponential,
    Gamma,
    LogNormalMixture,
    QuantileTable,
    Uniform,
    zipf,
)
from jaxsched.workloads.presets import Preset
from jaxsched.workloads.renewal import RenewalSpec
from jaxsched.workloads.rollouts import RolloutSpec
from jaxsched.workloads.split import SplitSpec

_POISSON = Renewal(Exponential())

# -- Azure LLM inference trace 2023 (Patel et al., Splitwise, ISCA 2024; CC-BY-4.0) ----------------------------------

AZURE_CONV_PROMPT = QuantileTable(  # KS 0.010
    (-3.3, -1.864, -1.281, -1.126, -0.854, -0.388, -0.272, -0.233, -0.194, -0.116, -0.078, 0.505, 0.621, 0.776, 0.815,
     1.126, 1.281, 2.174, 2.718, 3.3),
    (1.915, 5.129, 5.396, 5.919, 5.958, 6.016, 6.063, 6.123, 6.769, 6.885, 6.903, 7.028, 7.065, 7.181, 7.183,
     7.829, 8.312, 8.32, 8.334, 8.765),
)  # fmt: skip
AZURE_CONV_OUTPUT = QuantileTable(  # KS 0.012
    (-3.3, -2.291, -1.825, -0.738, -0.078, 0.311, 0.466, 0.505, 0.66, 0.893, 1.592, 3.3),
    (2.445, 2.796, 3.501, 4.349, 4.68, 5.137, 5.446, 5.921, 5.97, 5.991, 6.092, 6.904),
)
AZURE_CODE_PROMPT = QuantileTable(  # KS 0.024
    (-3.3, -2.989, -1.165, -0.544, 0.116, 0.466, 0.738, 1.436, 1.708, 1.747, 1.786, 3.3),
    (1.748, 1.899, 5.198, 6.629, 7.409, 7.74, 7.951, 8.697, 8.912, 8.913, 8.914, 8.914),
)
AZURE_CODE_OUTPUT = QuantileTable(  # KS 0.008
    (-3.3, -2.213, -1.553, -1.126, -0.854, -0.466, 0.155, 0.466, 0.66, 1.708, 3.067, 3.3),
    (1.706, 1.732, 1.831, 1.97, 2.115, 2.276, 2.673, 2.919, 3.107, 4.536, 6.737, 6.822),
)
#: Gaps inside bursts (s): everything below the 8 s that separates a pause in a burst from a silent period (KS 0.02).
AZURE_CODE_BURST_GAP = QuantileTable(
    (-3.3, -1.359, -1.087, -0.893, -0.466, -0.039, 0.233, 0.738, 0.971, 1.242, 2.019, 3.3),
    (-12.03, -8.69, -7.088, -6.812, -5.499, -3.048, -2.385, -2.253, -1.664, -1.561, -0.524, 1.938),
)

CHAT_SMOOTH = Preset(
    "chat_smooth",
    "Chat: nearly Poisson arrivals under a slow drift of the rate; prompts of about 1,200 tokens, answers of about 200",
    "Azure LLM 2023 conversation",
    RequestSpec(
        # Gamma CV 1.07 (KS 0.017). Drift fitted to IDC 1.3 / 3.5 / 15 at 1 / 10 / 60 s and a 1-s count ACF of 0.2.
        arrivals=DriftingRenewal(Gamma(cv=1.07), sigma=0.25, memory_requests=2400.0),
        prompt=AZURE_CONV_PROMPT,
        output=AZURE_CONV_OUTPUT,
    ),
    rate_per_s=5.91,
)
CODE_BURSTY = Preset(
    "code_bursty",
    "Code completion: ON/OFF bursts with silent periods of 8-200 s; prompts of about 2,000 tokens, answers of about 27",
    "Azure LLM 2023 code",
    RequestSpec(
        # Fitted to IDC 14 / 75 / 185 and the count ACF: bursts of 220 requests, inside them a rate drifting by 2x.
        arrivals=OnOff(
            on=AZURE_CODE_BURST_GAP,
            off=LogNormalMixture(((1.0, 3.4, 1.0),), low=8.0, high=200.0),
            burst_requests=220.0,
            sigma=0.7,
            memory_requests=200.0,
        ),
        prompt=AZURE_CODE_PROMPT,
        output=AZURE_CODE_OUTPUT,
        max_prompt_tokens=7_437,
    ),
    rate_per_s=3.21,
)

# -- Mooncake FAST'25 conversation (Qin et al., FAST 2025; Apache-2.0) -----------------------------------------------

MOONCAKE_PROMPT = QuantileTable(  # KS 0.008
    (-3.3, -1.864, -1.514, -1.32, -0.893, -0.427, 0.349, 1.592, 2.213, 3.3),
    (6.793, 6.799, 6.809, 6.852, 7.35, 8.345, 9.321, 10.557, 11.317, 11.716),
)
MOONCAKE_OUTPUT = QuantileTable(  # KS 0.007
    (-3.3, -2.058, -1.048, -0.815, -0.544, -0.311, -0.078, 0.272, 1.514, 3.3),
    (-0.453, 1.139, 3.754, 4.67, 5.345, 5.645, 5.826, 6.004, 6.502, 7.601),
)

MOONCAKE_CONV = Preset(
    "mooncake_conv",
    "Long-context chat: Poisson batches of about 10 per 3 s tick; prompts of about 12,000 tokens, answers of about 350",
    "Mooncake FAST'25 conversation",
    RequestSpec(
        arrivals=TickBatches(DriftingRenewal(Exponential(), sigma=0.15, memory_requests=4000.0), batch_mean=9.81),
        prompt=MOONCAKE_PROMPT,
        output=MOONCAKE_OUTPUT,
    ),
    rate_per_s=3.27,
)

# -- Length data sets without a clock: Poisson arrivals, default rate a judgement ------------------------------------

SHAREGPT_PROMPT = QuantileTable(  # KS 0.011
    (-3.3, -2.291, -1.786, -0.427, -0.039, 0.427, 1.359, 1.786, 2.213, 3.3),
    (0.427, 0.814, 1.68, 2.993, 3.511, 4.388, 6.828, 7.464, 7.899, 8.255),
)
SHAREGPT_OUTPUT = QuantileTable(  # KS 0.006
    (-3.3, -1.98, -1.242, -0.971, -0.466, -0.194, 0.039, 1.514, 1.902, 3.3),
    (1.494, 2.501, 3.849, 4.482, 5.208, 5.51, 5.682, 6.668, 6.83, 7.054),
)
SHAREGPT = Preset(
    "sharegpt",
    "ShareGPT chat lengths (Llama-2 tokenizer), Poisson arrivals",
    "ShareGPT as tokenised for Vidur experiments (7,000 rows)",
    RequestSpec(
        arrivals=_POISSON,
        prompt=SHAREGPT_PROMPT,
        output=SHAREGPT_OUTPUT,
        max_total_tokens=4_096,
    ),
    rate_per_s=5.0,
)
SHAREGPT_SPLIT = Preset(
    "sharegpt_split",
    "The requests of sharegpt, prefill and decode as two turns that may run on different instances",
    SHAREGPT.source,
    SplitSpec(
        arrivals=_POISSON,
        prompt=SHAREGPT_PROMPT,
        output=SHAREGPT_OUTPUT,
        max_total_tokens=4_096,
    ),
    rate_per_s=5.0,
)
ARXIV_SUM = Preset(
    "arxiv_sum",
    "Summarisation of papers: long prompts, short answers, at most 4,096 tokens together; Poisson arrivals",
    "arXiv summarisation as tokenised for Vidur (20,000 rows)",
    RequestSpec(
        arrivals=_POISSON,
        prompt=QuantileTable(  # the 95 % with answers up to 1,000 tokens, KS 0.010
            (-3.3, -2.058, -1.087, -0.388, 0.194, 0.66, 1.048, 1.631, 3.3),
            (4.066, 6.667, 7.425, 7.775, 7.999, 8.126, 8.193, 8.247, 8.301),
        ),
        output=QuantileTable(  # KS 0.004
            (-3.3, -1.398, -0.932, -0.311, 1.281, 3.028, 3.3), (2.764, 4.265, 4.571, 4.921, 5.749, 6.824, 6.875)
        ),
        # The other 4.6 %: short text, very long answer. They make the log-correlation of -0.49 of the source.
        paired=0.0458,
        paired_prompt=QuantileTable(
            (-3.265, -1.767, -1.229, 0.192, 1.806, 3.265), (-0.644, 0.192, 3.511, 6.049, 7.634, 8.014)
        ),
        paired_output=QuantileTable(
            (-3.265, -1.921, -0.192, 0.269, 1.421, 3.265), (6.912, 6.967, 7.831, 7.978, 8.218, 8.308)
        ),
        max_total_tokens=4_096,
    ),
    rate_per_s=2.0,
)
LMSYS = Preset(
    "lmsys",
    "LMSYS chat lengths: short prompts and answers; Poisson arrivals at the source's 0.5 requests/s",
    "LMSYS slice of APEX+ (1,024 rows)",
    RequestSpec(
        arrivals=_POISSON,
        prompt=QuantileTable(  # KS 0.012
            (-3.297, -1.978, -1.28, -0.31, 0.272, 0.776, 1.474, 2.172, 3.297),
            (0.478, 0.8, 1.675, 2.504, 3.189, 4.008, 5.594, 6.316, 6.944),
        ),
        output=QuantileTable(  # KS 0.012
            (-3.297, -1.94, -1.707, -0.931, -0.349, 0.272, 0.737, 1.28, 3.297),
            (-0.26, 1.2, 1.915, 3.119, 4.233, 5.139, 5.623, 5.965, 6.635),
        ),
    ),
    rate_per_s=0.5,
)
CREATION = Preset(
    "creation",
    "Content creation: short prompts, answers of about 1,100 tokens; Poisson arrivals at the source's 0.5 requests/s",
    "creation slice of APEX+ (512 rows)",
    RequestSpec(
        arrivals=_POISSON,
        prompt=QuantileTable(  # KS 0.010
            (-3.097, -2.441, -0.364, -0.255, 0.182, 0.692, 1.603, 1.968, 3.097),
            (4.61, 4.906, 5.609, 5.656, 5.786, 5.894, 6.046, 6.132, 7.116),
        ),
        output=QuantileTable(  # KS 0.012
            (-3.097, -1.421, -0.656, 0.073, 0.656, 1.421, 1.603, 2.15, 3.097),
            (5.466, 6.353, 6.725, 7.036, 7.277, 7.47, 7.494, 7.65, 8.161),
        ),
    ),
    rate_per_s=0.5,
)
ARENA = Preset(
    "arena",
    "Chatbot arena: 27 tenants with Zipf popularity (exponent 1.5), mildly bursty arrivals; klass is the tenant",
    "VTC arena trace (Sheng et al., OSDI 2024)",
    RequestSpec(
        # CV 1.10; the short memory gives IDC about 2.5 at 10 s and at 60 s.
        arrivals=DriftingRenewal(Exponential(), sigma=0.42, memory_requests=6.0, block_requests=4),
        prompt=QuantileTable(  # KS 0.009
            (-3.292, -2.091, -1.588, -1.162, -0.31, 0.581, 0.929, 1.51, 2.44, 3.292),
            (0.41, 0.62, 1.027, 1.9, 3.142, 4.98, 5.59, 6.414, 6.841, 6.929),
        ),
        output=QuantileTable(  # KS 0.012 (mixture: 0.10)
            (-3.292, -2.091, -0.387, 0.349, 0.813, 0.929, 1.278, 1.588, 2.595, 3.292),
            (0.412, 1.046, 4.664, 5.82, 6.232, 6.238, 6.24, 6.241, 6.854, 6.884),
        ),
        tenants=zipf(27, 1.5),
    ),
    rate_per_s=2.5,
)

# -- ServeGen (Xiang et al., arXiv 2505.09999; Apache-2.0), all clients merged ---------------------------------------

REASONING_R1 = Preset(
    "reasoning_r1",
    "Reasoning model: answers of about 2,100 tokens with a heavy tail; nearly Poisson arrivals under an hourly drift",
    "ServeGen deepseek-r1, 73 clients merged",
    RequestSpec(
        # Log rate of 10-minute windows: sd 0.46, lag-1 ACF 0.90, so a memory of 5,500 s or 80,000 requests.
        arrivals=DriftingRenewal(Gamma(cv=1.02), sigma=0.46, memory_requests=80_000.0),
        prompt=QuantileTable(  # KS 0.011
            (-3.3, -1.359, -0.854, -0.349, 0.078, 0.272, 0.388, 0.505, 0.699, 0.854, 1.009, 1.708, 2.252, 3.3),
            (1.253, 2.809, 3.575, 4.487, 5.545, 5.61, 5.967, 6.105, 6.9, 7.061, 7.191, 9.215, 10.097, 10.528),
        ),
        output=QuantileTable(  # KS 0.006
            (-3.3, -1.087, -0.544, 0.194, 0.427, 0.738, 0.971, 1.592, 2.407, 3.3),
            (4.379, 5.877, 6.316, 7.179, 7.419, 7.939, 8.242, 8.888, 9.627, 10.078),
        ),
        max_output_tokens=32_768,
    ),
    rate_per_s=14.6,
)
M_LARGE = Preset(
    "m_large",
    "Large general model: prompts of about 1,000 tokens in three clusters, answers of about 210; slow drift",
    "ServeGen m-large, 32 clients merged (lengths), 162 clients (rate)",
    RequestSpec(
        # 10-minute windows without the daily cycle: log-sd 0.29, phi 0.83, so a memory of 3,220 s or 675,000 requests.
        arrivals=DriftingRenewal(Gamma(cv=1.19), sigma=0.29, memory_requests=675_000.0),
        prompt=QuantileTable(  # KS 0.020 (mixture: 0.09)
            (-3.3, -1.786, -1.32, -0.893, -0.738, -0.582, -0.466, 0.0, 0.427, 0.815, 1.825, 3.3),
            (4.07, 4.132, 4.294, 4.338, 4.39, 6.034, 6.292, 6.503, 6.891, 7.764, 7.795, 9.072),
        ),
        output=QuantileTable(  # KS 0.015 (mixture: 0.056)
            (-3.3, -1.669, -1.087, -0.776, -0.738, -0.039, 0.039, 0.349, 0.544, 1.398, 2.019, 3.3),
            (-0.684, 0.035, 1.014, 1.249, 1.593, 4.299, 4.48, 5.884, 6.028, 6.242, 6.504, 7.485),
        ),
    ),
    rate_per_s=209.5,
)

# -- Single requests that share system prompts ------------------------------------------------------------------------

SHARED_PROMPTS = Preset(
    "shared_prompts",
    "Requests of 64 tenants, each with its own system prompt of 512-2,048 tokens; Zipf popularity (exponent 1.1)",
    "questions and answers as ShareGPT; number, popularity and length of the system prompts are judgement",
    RequestSpec(
        arrivals=_POISSON,
        prompt=SHAREGPT_PROMPT,
        output=SHAREGPT_OUTPUT,
        groups=zipf(64, 1.1),
        prefix=Uniform(512.0, 2_048.0),
    ),
    rate_per_s=5.0,
)

# -- Job lists: everything is there at time 0 --------------------------------------------------------------------------

BATCH_JOBS = Preset(
    "batch_jobs",
    "A list of jobs, all there at time 0: questions about shared documents of about 1,600 tokens, answers of about 75",
    "shape of BatchLLM's offline task (one document, several short queries); every number is judgement",
    RequestSpec(
        arrivals=AtOnce(),
        prompt=LogNormalMixture(((1.0, 5.3, 0.5),), low=16.0, high=2_000.0),
        output=LogNormalMixture(((1.0, 4.1, 0.7),), low=1.0, high=800.0),
        groups=zipf(190, 0.3),
        prefix=LogNormalMixture(((1.0, 7.2, 0.6),), low=128.0, high=6_000.0),
    ),
    rate_per_s=1.0,  # has no meaning here
)

ROLLOUTS = Preset(
    "rollouts",
    "Rollouts of reinforcement learning in rounds: 8 answers of each prompt, about 1,900 tokens with a long tail",
    "shape of APRIL's workloads (group sampling, answers up to 8,192 tokens, few long); every number is judgement",
    RolloutSpec(
        prompt=LogNormalMixture(((1.0, 5.2, 0.5),), low=32.0, high=1_500.0),
        output=LogNormalMixture(((1.0, 7.1, 0.8),), low=16.0, high=8_192.0),
    ),
    rate_per_s=1.0,  # has no meaning here
)

# -- Queueing theory: sizes are output tokens with a mean so large that rounding does not matter ---------------------

_QUEUES = tuple(
    Preset(name, summary, "queueing theory", spec, rate_per_s=1.0)
    for name, summary, spec in (
        ("renewal", "Renewal arrivals and independent sizes; options choose the two laws", RenewalSpec()),
        ("mm1", "Poisson arrivals, exponential sizes", RenewalSpec(size="exponential")),
        ("md1", "Poisson arrivals, constant sizes", RenewalSpec(size="constant")),
        ("mh1", "Poisson arrivals, hyperexponential sizes (squared CV 4)", RenewalSpec(size="hyperexponential")),
    )
)

REQUEST_PRESETS: tuple[Preset, ...] = (
    CHAT_SMOOTH,
    CODE_BURSTY,
    MOONCAKE_CONV,
    SHAREGPT,
    SHAREGPT_SPLIT,
    ARXIV_SUM,
    LMSYS,
    CREATION,
    ARENA,
    REASONING_R1,
    M_LARGE,
    SHARED_PROMPTS,
    BATCH_JOBS,
    ROLLOUTS,
    *_QUEUES,
)
