__import__("hearth_kernel").warm_up()
