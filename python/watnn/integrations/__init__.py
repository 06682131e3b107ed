"""watnn inside other training frameworks, each an optional dependency; import the module of the framework in use."""
