from __future__ import annotations

CALLBACKS: dict[str, object] = {}


def eval_js(script, ignore_result=False, timeout_sec=None):
    return None


def register_callback(function_name, callback):
    CALLBACKS[function_name] = callback


def clear(wait=False, output_tags=()):
    pass


def enable_custom_widget_manager(version=None):
    pass
