"""The look of a report: one style sheet for light and dark, and the few lines of script that highlight a policy."""

from __future__ import annotations

from collections.abc import Sequence

# Series colours: the first is ink; the others differ in lightness as well as in hue, and markers differ by shape, so
# that neighbours in the list stay apart for colour-blind readers and in print.
_LIGHT = [
    "#2f3640", "#0b6bcb", "#d9480f", "#2b8a3e", "#9c36b5", "#c99700",
    "#0c8599", "#c2255c", "#5f3dc4", "#7a5230", "#5c940d", "#868e96",
]  # fmt: skip
_DARK = [
    "#dfe5ec", "#5aa9f8", "#ff8f4d", "#63d07a", "#d583ea", "#f2c94c",
    "#3fc3d6", "#ff7fa3", "#a68bfa", "#cfa27a", "#a9d95a", "#98a1ab",
]  # fmt: skip


def _variables(colours: Sequence[str]) -> str:
    return "".join(f"--c{i}:{c};" for i, c in enumerate(colours))


_SERIES = "".join(
    f".line.c{i}{{stroke:var(--c{i})}}.mark.c{i},.band.c{i}{{fill:var(--c{i})}}.swatch.c{i}{{--k:var(--c{i})}}"
    for i in range(len(_LIGHT))
)
_INSTANCES = "".join(f".trace.i{i}{{stroke:var(--c{i + 1})}}.swatch.i{i}{{--k:var(--c{i + 1})}}" for i in range(8))
#: How many panels `tabs` can switch between.
MAX_TABS = 32
_TABS = "".join(
    f".tabs>input:nth-of-type({k}):checked~.panel:nth-of-type({k}){{display:block}}"
    f".tabs>input:nth-of-type({k}):checked~.tabbar>label:nth-of-type({k})"
    "{color:var(--ink);border-color:var(--accent);font-weight:600}"
    f".tabs>input:nth-of-type({k}):focus-visible~.tabbar>label:nth-of-type({k})"
    "{outline:2px solid var(--accent);outline-offset:2px}"
    for k in range(1, MAX_TABS + 1)
)
_FADE = "".join(
    f'.focus-{i} :is(.line,.mark,.band):not(.s{i}){{opacity:.1}}.focus-{i} .line.s{i}{{stroke-width:2.6}}'
    for i in range(64)
)  # fmt: skip

STYLE = (
    """
:root{color-scheme:light dark;--page:#f6f7f8;--card:#fff;--ink:#1d232b;--soft:#56616d;--faint:#8a949f;--rule:#e1e5e9;
--grid:#edf0f2;--accent:#0b6bcb;--better:#1c7ed6;--worse:#e8590c;--good-ink:#0b5cad;--bad-ink:#b3420a;--code:#f1f3f5;
--warn:#fff6e0;--warn-rule:#e8b931;"""
    + _variables(_LIGHT)
    + """}
@media (prefers-color-scheme:dark){:root{--page:#12151a;--card:#1a1f26;--ink:#e4e9ef;--soft:#a5b0bc;--faint:#7c8793;
--rule:#2c343d;--grid:#262d35;--accent:#5aa9f8;--better:#3f97ec;--worse:#e8703a;--good-ink:#7dbcff;--bad-ink:#ff9f73;
--code:#141920;--warn:#2e2716;--warn-rule:#a98a2c;"""
    + _variables(_DARK)
    + """}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:15px/1.55 ui-sans-serif,system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue","Noto Sans","Liberation Sans",Arial,sans-serif;font-variant-numeric:tabular-nums}
main{max-width:1240px;margin:0 auto;padding:40px 28px 64px}
header{margin-bottom:28px}
h1{font-size:30px;line-height:1.2;letter-spacing:-.015em;margin:0 0 6px;font-weight:650;overflow-wrap:anywhere}
.lead{font-size:18px;line-height:1.45;margin:0 0 14px;color:var(--ink);max-width:62em}
.facts{display:flex;flex-wrap:wrap;gap:4px 22px;margin:0;padding:0;list-style:none;color:var(--soft);font-size:13.5px}
.facts b{color:var(--ink);font-weight:600}
section{background:var(--card);border:1px solid var(--rule);border-radius:12px;padding:24px 28px;margin:0 0 20px}
h2{font-size:19px;line-height:1.3;letter-spacing:-.008em;margin:0 0 4px;font-weight:650}
h3{font-size:14px;line-height:1.35;margin:0 0 6px;font-weight:600}
.say{color:var(--soft);margin:0 0 16px;max-width:76em;font-size:14px}
svg{display:block;width:100%;height:auto;overflow:visible;font-family:inherit}
.grid3{display:grid;grid-template-columns:repeat(auto-fill,minmax(330px,1fr));gap:22px 24px}
.grid2{display:grid;grid-template-columns:repeat(auto-fit,minmax(440px,1fr));gap:22px 32px}
figure{margin:0;min-width:0}
.verdict{display:grid;grid-template-columns:118px minmax(140px,190px) 1fr;gap:4px 22px;padding:14px 0;
border-top:1px solid var(--rule)}
.verdict:first-of-type{border-top:0;padding-top:4px}
.verdict .at{font-size:21px;line-height:1.2;font-weight:650;letter-spacing:-.01em}
.verdict .at small{display:block;font-size:12.5px;font-weight:400;color:var(--soft);letter-spacing:0;margin-top:3px}
.verdict .who{font-size:16px;line-height:1.35;font-weight:650;overflow-wrap:anywhere}
.verdict.win .who{color:var(--good-ink)}
.verdict.tie .who{color:var(--soft)}
.verdict p{margin:0;max-width:62em}
.caution{margin-top:8px!important;padding:6px 11px;background:var(--warn);border-left:3px solid var(--warn-rule);
border-radius:3px;
font-size:13.5px}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:13.5px}
th,td{padding:7px 10px;text-align:right;border-bottom:1px solid var(--rule);vertical-align:top;white-space:nowrap}
th:first-child,td:first-child{text-align:left;padding-left:0}
thead th{color:var(--soft);font-weight:600;font-size:12.5px;border-bottom-color:var(--faint);vertical-align:bottom}
thead small{display:block;font-weight:400}
tbody th{font-weight:600}tbody th:first-child{white-space:normal;min-width:90px;max-width:190px}
tbody tr:last-child>*{border-bottom:0}
td b{font-weight:600}
td .ci{display:block;color:var(--soft);font-size:12px}
td .vs{display:block;font-size:12px;color:var(--soft)}
td .vs.better{color:var(--good-ink)}td .vs.worse{color:var(--bad-ink)}
td.best{background:color-mix(in srgb,var(--better) 9%,transparent)}
.base-tag{font-weight:400;color:var(--soft);font-size:12px;margin-left:6px}
.zero{color:var(--faint)}
.bar{display:flex;height:10px;width:190px;border-radius:3px;overflow:hidden;background:var(--grid);margin-top:6px}
.bar i{display:block}
.f-finished{background:#2f9e5b}.f-unfinished{background:#8ea1b5}.f-rejected_size{background:#7a4fc9}
.f-rejected_queue{background:#e8590c}.f-rejected_late{background:#f08c00}.f-timed_out{background:#c2255c}.f-never_arrived{background:#d8a400}
.legend{display:flex;flex-wrap:wrap;gap:4px 8px;margin:0 0 14px -6px;padding:0;list-style:none;font-size:13.5px}
.legend li{padding:2px 9px 2px 6px;border-radius:6px;cursor:default;display:flex;align-items:center;gap:7px}
.legend li[data-series]:hover,.legend li[data-series]:focus-visible{background:var(--grid);outline:0}
.swatch{--k:var(--ink);flex:none}
.swatch line{stroke:var(--k);stroke-width:2}.swatch :is(circle,rect,polygon){fill:var(--k)}
.fatekey{width:11px;height:11px;border-radius:3px;display:inline-block}
.tabs>input{position:absolute;opacity:0;pointer-events:none}
.tabbar{display:flex;flex-wrap:wrap;gap:2px 18px;border-bottom:1px solid var(--rule);margin:0 0 16px}
.tabbar label{padding:5px 1px 7px;margin-bottom:-1px;cursor:pointer;color:var(--soft);
border-bottom:2px solid transparent;font-size:14px}
.tabbar label:hover{color:var(--ink)}
.tabs>.panel{display:none}
.grid{stroke:var(--grid)}.axis{stroke:var(--faint)}
.tick,.axis-title{font-size:11.5px;fill:var(--soft)}
.capacity{stroke:var(--faint);stroke-dasharray:3 4}
.line,.trace{fill:none;stroke-width:1.9;stroke-linejoin:round;stroke-linecap:round}
.dashed.line{stroke-dasharray:6 4}
.mark{stroke:var(--card);stroke-width:1}
.band{opacity:.13}
.trace{stroke-width:1.25;opacity:.85}.trace.median{stroke:var(--c1);stroke-width:1.6}
.spread{fill:var(--c1);opacity:.13}.spread.inner{opacity:.2}
.cell.better{fill:var(--better)}.cell.worse{fill:var(--worse)}.cell.tie,.cell.base{fill:var(--soft)}
.cell.base{fill-opacity:.1}
.cell-text{font-size:12.5px;fill:var(--ink)}.cell-text.muted{fill:var(--soft)}
.row-label{font-size:12.5px;fill:var(--ink)}.strong{font-weight:650}
pre,code{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace;font-size:12.5px}
pre{background:var(--code);border:1px solid var(--rule);border-radius:8px;padding:12px 14px;overflow-x:auto;
margin:0 0 16px;line-height:1.5}
pre.command{white-space:pre-wrap;overflow-wrap:anywhere}
details{margin:16px 0 4px}summary{cursor:pointer;font-weight:600;font-size:14px;margin-bottom:8px}
dl{display:grid;grid-template-columns:minmax(110px,190px) 1fr;gap:6px 22px;margin:0 0 16px;font-size:14px}
dt{font-weight:600}dd{margin:0;color:var(--soft);overflow-wrap:anywhere}
ul.notes{margin:0 0 14px;padding-left:18px;color:var(--soft);font-size:14px}
@media (max-width:760px){main{padding:22px 12px}section{padding:18px 16px}.verdict{grid-template-columns:1fr}
.grid2{grid-template-columns:1fr}dl{grid-template-columns:1fr;gap:0}dd{margin-bottom:8px}}
@media print{body{background:#fff}section{break-inside:avoid-page;border:0;padding:0}.tabs>.panel{display:block}
.tabbar{display:none}}
"""
    + _SERIES
    + _INSTANCES
    + _TABS
    + _FADE
)

# Pointing at a policy in a legend fades the others in every chart of the same section. Without script nothing is lost.
SCRIPT = """
document.querySelectorAll('.legend li[data-series]').forEach(function(item){
var scope=item.closest('section'),name='focus-'+item.dataset.series;
function on(){scope.classList.add(name)}function off(){scope.classList.remove(name)}
item.addEventListener('mouseenter',on);item.addEventListener('mouseleave',off);
item.addEventListener('focus',on);item.addEventListener('blur',off);});
"""
