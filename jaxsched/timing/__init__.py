"""Step-time models: described from hardware and model shapes, fitted from measurements, or affine; int32 on device."""

from jaxsched.timing.calibrate import Fit, fit_csv, load_coefficients
from jaxsched.timing.capacity import KvCapacity, kv_capacity
from jaxsched.timing.description import StepTime, describe
from jaxsched.timing.devices import DeviceSpec, find_device, list_devices
from jaxsched.timing.models import ModelSpec, find_model, list_models
from jaxsched.timing.reference import StepFeatures, check_range, step_time_us_reference
from jaxsched.timing.step_time import StepTimeParams, affine, constant_us, context_us, scale

__all__ = [
    "DeviceSpec",
    "Fit",
    "KvCapacity",
    "ModelSpec",
    "StepFeatures",
    "StepTime",
    "StepTimeParams",
    "affine",
    "check_range",
    "constant_us",
    "context_us",
    "describe",
    "find_device",
    "find_model",
    "fit_csv",
    "kv_capacity",
    "list_devices",
    "list_models",
    "load_coefficients",
    "scale",
    "step_time_us_reference",
]
