pytest_plugins = ["tests.triton_driver"]
