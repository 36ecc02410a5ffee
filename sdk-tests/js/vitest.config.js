import { defineConfig } from 'vitest/config'

export default defineConfig({
  test: {
    // Tests in `names` need a domain, those in `interpreter` the template.
    include: [
      'tests/**/*.test.js',
      ...(process.env.E2B_DOMAIN ? ['names/*.test.js'] : []),
      ...(process.env.JOURNEYS_INTERPRETER ? ['interpreter/*.test.js'] : []),
    ],
    globalSetup: ['./leftovers.js'],
    // Under emulation a command takes up to a few seconds; a hanging test must not block the run.
    testTimeout: process.env.JOURNEYS_INTERPRETER ? 300_000 : 120_000,
    hookTimeout: 60_000,
    // One file at a time, because sandboxes need the machine's few processors.
    fileParallelism: false,
  },
})
