globalThis[Symbol.for("hearth.warm-up")]()
