// Results, callbacks, languages, variables, contexts, tables and images.

import { afterAll, beforeAll, expect, test } from 'vitest'

import { KERNEL_START, output, sharedInterpreter, text } from './interpreters.js'

let sandbox
beforeAll(async () => {
  sandbox = await sharedInterpreter({ envs: { SHARED: 'of the sandbox' } })
})
afterAll(() => sandbox?.kill())

const isPng = (base64) => Buffer.from(base64, 'base64').subarray(1, 4).toString() === 'PNG'

// interpreter: B1
test('a result and the state of the next call', async () => {
  expect(text(await sandbox.runCode('x = 1; x'))).toBe('1')
  expect(text(await sandbox.runCode('x += 1; x'))).toBe('2')
})

// interpreter: B3
test.each([
  ['result', '21 * 2'],
  ['error', 'nobody'],
  ['stdout', "print('out')"],
  ['stderr', "import sys; print('err', file=sys.stderr)"],
])('one callback for one %s', async (kind, code) => {
  const seen = []
  const execution = await sandbox.runCode(code, {
    onResult: (item) => seen.push(['result', item]),
    onError: (item) => seen.push(['error', item]),
    onStdout: (item) => seen.push(['stdout', item]),
    onStderr: (item) => seen.push(['stderr', item]),
  })
  expect(seen.map(([name]) => name)).toEqual([kind])
  const [, item] = seen[0]
  const { results, logs, error } = execution
  expect(results).toEqual(kind === 'result' ? [item] : [])
  expect(logs.stdout).toEqual(kind === 'stdout' ? ['out\n'] : [])
  expect(logs.stderr).toEqual(kind === 'stderr' ? ['err\n'] : [])
  if (kind === 'result') expect(item.text).toBe('42')
  if (kind === 'stdout' || kind === 'stderr') expect(item.line).toBe(logs[kind][0])
  if (kind !== 'error') return
  expect([item.name, item.value]).toEqual(['NameError', "name 'nobody' is not defined"])
  expect(error).toBe(item)
})

// interpreter: B4
test('a plot and a last expression are two results', async () => {
  const execution = await sandbox.runCode(`
    import numpy as np
    import matplotlib.pyplot as plt
    plt.plot(np.linspace(0, 20, 100), np.sin(np.linspace(0, 20, 100)))
    plt.show()
    np.array([1, 2])
  `)
  expect(text(execution)).toBe('array([1, 2])')
  expect(execution.results.map(({ isMainResult }) => isMainResult)).toEqual([false, true])
})

// interpreter: B5
test('a shell command runs in the home directory', async () => {
  expect(output(await sandbox.runCode('!pwd')).trim()).toBe('/home/user')
})

// interpreter: B6
test('a bundle of LaTeX alone', async () => {
  const code = "from IPython.display import display\ndisplay({'text/latex': r'\\text{CPython}'}, raw=True)"
  expect((await sandbox.runCode(code)).results[0].formats()).toEqual(['latex'])
})

// interpreter: L1
test.each([
  ['python', 'import os; print(os.getcwd())', '/home/user'],
  ['js', 'console.log(process.cwd())', '/home/user'],
  ['ts', 'console.log(process.cwd())', '/home/user'],
  ['r', 'print(getwd())', '[1] "/home/user"'],
  ['java', 'System.out.println(System.getProperty("user.dir"));', '/home/user'],
  ['bash', 'pwd', '/home/user'],
])('the working directory of %s', async (language, code, expected) => {
  expect(output(await sandbox.runCode(code, { language, ...KERNEL_START })).trim()).toBe(expected)
})

// interpreter: L2
test.each([
  ['js', 'console.log("Hello, World!")', ['Hello, World!\n']],
  ['ts', 'const message: string = "Hello, World!"; console.log(message)', ['Hello, World!\n']],
  ['r', 'print("Hello, World!")', ['[1] "Hello, World!"\n']],
  ['java', 'System.out.println("Hello, World!");', undefined],
  ['bash', 'echo "Hello, World!"', ['Hello, World!\n']],
  ['python', 'print("Hello, World!")', ['Hello, World!\n']],
])('%s prints', async (language, code, expected) => {
  const execution = await sandbox.runCode(code, { language, ...KERNEL_START })
  output(execution)
  if (expected) expect(execution.logs.stdout).toEqual(expected)
  else expect(execution.logs.stdout[0]).toBe('Hello, World!')
})

// interpreter: L3
test('JavaScript imports and awaits', async () => {
  const code = "import { readFileSync } from 'fs'\nconsole.log(readFileSync('/etc/hostname', 'utf8').length > 0)"
  expect(output(await sandbox.runCode(code, { language: 'js' }))).toBe('true\n')
  const awaits = "async function answer() { return 'Hello' + ', ' + 'World!' }\nawait answer()"
  expect(text(await sandbox.runCode(awaits, { language: 'js' }))).toBe('Hello, World!')
})

// interpreter: L4
test('TypeScript types are removed', async () => {
  const code = 'interface Answer { value: number }\nconst answer: Answer = { value: 42 }\nconsole.log(answer.value)'
  expect(output(await sandbox.runCode(code, { language: 'ts', ...KERNEL_START }))).toBe('42\n')
})

// interpreter: E1
test.each([
  ['bash', (name) => `echo \${${name}-none}`],
  ['java', (name) => `System.out.println(System.getProperty("${name}", "none"));`],
  ['javascript', (name) => `console.log(process.env.${name} ?? 'none')`],
  ['python', (name) => `import os; print(os.getenv('${name}', 'none'))`],
  ['r', (name) => `cat(Sys.getenv('${name}', 'none'))`],
])('variables in %s, of the sandbox and of one execution', async (language, read) => {
  const value = async (name, envs) =>
    output(await sandbox.runCode(read(name), { language, envs, ...KERNEL_START })).trim()
  expect(await value('SHARED')).toBe('of the sandbox')
  expect(await value('ONCE', { ONCE: 'once' })).toBe('once')
  expect(await value('ONCE')).toBe('none')
  expect(await value('SHARED', { SHARED: 'of the execution' })).toBe('of the execution')
  expect(await value('SHARED')).toBe('of the sandbox')
})

// interpreter: C1, C3
test.each([[{}], [{ language: 'python', cwd: '/root' }]])('a new context %j is the last', async (options) => {
  const context = await sandbox.createCodeContext(options)
  expect(context).toMatchObject({ language: 'python', cwd: options.cwd ?? '/home/user' })
  const last = (await sandbox.listCodeContexts()).at(-1)
  expect([last.id, last.language, last.cwd]).toEqual([context.id, context.language, context.cwd])
  await sandbox.removeCodeContext(context)
  expect((await sandbox.listCodeContexts()).map(({ id }) => id)).not.toContain(context.id)
})

// interpreter: C2
test('Python and JavaScript have contexts', async () => {
  const languages = (await sandbox.listCodeContexts()).map(({ language }) => language)
  expect(languages).toEqual(expect.arrayContaining(['python', 'javascript']))
})

// interpreter: C4, C5
test('contexts are separate and a restart forgets', async () => {
  await sandbox.runCode("x = 'of the default context'")
  const context = await sandbox.createCodeContext()
  const undefinedName = { name: 'NameError', value: "name 'x' is not defined" }
  expect((await sandbox.runCode('x', { context })).error).toMatchObject(undefinedName)
  expect(text(await sandbox.runCode('x = 1; x', { context }))).toBe('1')
  await sandbox.restartCodeContext(context)
  expect((await sandbox.runCode('x', { context })).error).toMatchObject(undefinedName)
  expect(text(await sandbox.runCode('x'))).toBe('of the default context')
  await sandbox.removeCodeContext(context)
})

// interpreter: C6
test('a context with a language is rejected', async () => {
  const [context] = await sandbox.listCodeContexts()
  await expect(sandbox.runCode('1', { context, language: 'python' })).rejects.toThrow(/both/)
})

// interpreter: D1
test('a table has data', async () => {
  const execution = await sandbox.runCode("import pandas as pd\npd.DataFrame({'a': [1, 2, 3]})")
  output(execution)
  expect(execution.results[0].data).toEqual({ a: [1, 2, 3] })
})

// interpreter: D2
test('a plot is a picture', async () => {
  const execution = await sandbox.runCode('import matplotlib.pyplot as plt\nplt.plot([1, 2, 3])\nplt.show()')
  output(execution)
  const [result] = execution.results
  expect(isPng(result.png)).toBe(true)
  expect(result.text).toMatch(/^<Figure size/)
  expect(result.extra).toEqual({})
})

// interpreter: D3
test.each(['image.show()', 'image', 'image.save("x.png")'])('an image of PIL is a picture: %s', async (last) => {
  const head = "import numpy\nfrom PIL import Image\nimage = Image.fromarray(numpy.zeros((16, 16, 3), dtype='uint8'))"
  const execution = await sandbox.runCode(`${head}\n${last}`)
  output(execution)
  expect(isPng(execution.results[0].png)).toBe(true)
})
