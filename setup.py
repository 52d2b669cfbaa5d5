"""The one thing that pyproject.toml cannot say: the passes in C are built where they can be."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "effectonce._native",
            ["src/effectonce/_native.c"],
            extra_compile_args=["-O3"],
            py_limited_api=True,
            optional=True,  # without a compiler: the same answers, slower
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
