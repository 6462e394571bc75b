/* Stands for libnvinfer_plugin and libnvonnxparser, of which the bindings want only that they can be loaded. */
