// Compares the server's OpenAPI document with the type declarations in the official SDK. These are an independent description of
// the API, and contain some routes that the Python SDK does not have.

import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'

import { expect, test } from 'vitest'

import { API_URL } from '../journeys.js'

// Statuses of operations for which the SDK declares more. Nothing is paused yet, so nothing is resumed.
const OTHERWISE = {
  'POST /sandboxes/{}/connect': [200],
  'POST /v2/sandboxes/{}/connect': [200],
}

/** Parses a top-level interface of the declarations to an object; other types become strings. Members are indented by two. */
function declared(text, name) {
  const from = text.indexOf(`\ninterface ${name} {\n`)
  const lines = text.slice(from + 1, text.indexOf('\n}\n', from)).split('\n').slice(1)
  const root = {}
  const path = [root]
  for (const line of lines) {
    const trimmed = line.trim()
    const member = /^("[^"]+"|[\w$]+)(\??): (.*)$/.exec(trimmed)
    if (/^[}\]]/.test(trimmed)) {
      path.pop()
    } else if (member && /^[\w$"]/.test(trimmed)) {
      const [, key, optional, value] = member
      const opens = /[{(]$/.test(value)
      // `A & {` also has the members of A.
      const object = opens ? { $value: value } : value
      path.at(-1)[key.replaceAll('"', '') + optional] = object
      if (opens) path.push(object)
    } else if (/[{(]$/.test(trimmed) && !trimmed.startsWith('*') && !trimmed.startsWith('/')) {
      path.push({})
    }
  }
  return root
}

const entry = createRequire(import.meta.url).resolve('e2b')
const declarations = readFileSync(join(dirname(entry), 'index.d.ts'), 'utf8')
const paths = declared(declarations, 'paths')
const schemas = declared(declarations, 'components').schemas

function operations() {
  const methods = ['get', 'put', 'post', 'delete', 'patch']
  const found = Object.entries(paths).flatMap(([path, item]) =>
    methods.filter((method) => typeof item[method] === 'object').map((method) => [path, method, item[method]]),
  )
  return found.map(([path, method, { responses }]) => ({
    name: `${method.toUpperCase()} ${path.replace(/\{[^}]*\}/g, '{}')}`,
    successes: Object.entries(responses).filter(([status]) => Number(status) < 400),
  }))
}

const schemaName = (text) => /components\["schemas"\]\["(\w+)"\]/.exec(text)?.[1]

/** Returns the required members of a schema. */
function always(name) {
  const schema = schemas[name]
  if (typeof schema !== 'object') return []
  const base = schemaName(schema.$value)
  const own = Object.keys(schema).filter((key) => !key.startsWith('$') && !key.endsWith('?'))
  return [...(base ? always(base) : []), ...own]
}

const document = await (await fetch(`${API_URL}/openapi.json`)).json()

function resolve(value) {
  return value.$ref ? value.$ref.slice(2).split('/').reduce((found, part) => found[part], document) : value
}

function required(schema) {
  const { type, items, allOf = [], required: own = [] } = resolve(schema)
  return type === 'array' ? required(items) : [...own, ...allOf.flatMap(required)]
}

const documented = new Map(
  Object.entries(document.paths).flatMap(([path, item]) =>
    Object.entries(item).map(([method, operation]) => [
      `${method.toUpperCase()} ${path.replace(/\{[^}]*\}/g, '{}')}`,
      operation,
    ]),
  ),
)

test('the declarations are parsed correctly', () => {
  const create = operations().find(({ name }) => name === 'POST /v2/sandboxes')
  expect(create.successes.map(([status]) => status)).toEqual(['201'])
  expect(schemaName(create.successes[0][1].content['application/json'])).toBe('Sandbox')
  expect(always('Sandbox')).toEqual(expect.arrayContaining(['sandboxID', 'templateID', 'envdVersion']))
  expect(always('Sandbox')).not.toContain('envdAccessToken')
  expect(operations().length).toBeGreaterThan(40)
})

test.each(operations())('the document agrees: $name', ({ name, successes }) => {
  const operation = documented.get(name)
  expect(operation, 'the route is not in the document').toBeDefined()
  if (operation['x-not-supported']) return
  const statuses = Object.keys(operation.responses).map(Number).filter((status) => status < 400)
  expect(statuses).toEqual(OTHERWISE[name] ?? successes.map(([status]) => Number(status)))
  for (const [status, declaration] of successes.filter(([status]) => statuses.includes(Number(status)))) {
    const needed = schemaName(declaration.content?.['application/json'] ?? '')
    if (!needed) continue
    const described = resolve(operation.responses[status]).content['application/json'].schema
    expect(required(described)).toEqual(expect.arrayContaining(always(needed)))
  }
})
