// The SDK's git helpers. They run ordinary commands, so they test many features together.

import { afterAll, beforeAll, expect, test } from 'vitest'

import { sharedSandbox } from '../journeys.js'

let sandbox
beforeAll(async () => {
  sandbox = await sharedSandbox()
})
afterAll(() => sandbox?.kill())

// envd: C19
test('git workflow', async () => {
  const { git, files } = sandbox
  const [origin, first, second] = ['origin.git', 'first', 'second'].map((name) => `/home/user/${name}`)
  await git.configureUser('Ada', 'ada@example.com')
  await git.init(origin, { bare: true, initialBranch: 'main' })
  await git.init(first, { initialBranch: 'main' })
  await files.write(`${first}/note.txt`, 'one\n')
  expect(await git.status(first)).toMatchObject({
    currentBranch: 'main', fileStatus: [{ name: 'note.txt', status: 'untracked', staged: false }],
  })
  await git.add(first)
  await git.commit(first, 'the first')
  await git.remoteAdd(first, 'origin', origin)
  await git.push(first, { remote: 'origin', branch: 'main' })

  await git.clone(origin, { path: second })
  await git.createBranch(second, 'idea')
  expect((await git.branches(second)).branches.sort()).toEqual(['idea', 'main'])
  await git.checkoutBranch(second, 'main')
  await files.write(`${second}/note.txt`, 'two\n')
  await git.add(second)
  await git.commit(second, 'the second', { authorName: 'Grace', authorEmail: 'grace@example.com' })
  await git.push(second)

  await git.pull(first, { remote: 'origin', branch: 'main' })
  expect(await files.read(`${first}/note.txt`)).toBe('two\n')
  const log = await sandbox.commands.run("git log --format='%an: %s'", { cwd: first })
  expect(log.stdout).toBe('Grace: the second\nAda: the first\n')
})
