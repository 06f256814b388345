"""How tests compile: they compile much and compute little."""

# Half the time goes without LLVM's optimizations.
FAST_COMPILATION = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
