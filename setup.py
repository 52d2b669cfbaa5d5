"""The one thing that pyproject.toml cannot say: the passes in C are built where they can be."""

from sysconfig import get_config_var

from setuptools import Extension, setup

IS_STABLE = not get_config_var("Py_GIL_DISABLED")
"""Without a GIL, CPython has no stable ABI yet: that build is for one version."""

setup(
    ext_modules=[
        Extension(
            "effectonce._native",
            ["src/effectonce/_native.c"],
            extra_compile_args=["-O3"],
            py_limited_api=IS_STABLE,
            optional=True,  # without a compiler: the same answers, slower
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if IS_STABLE else {},
)
