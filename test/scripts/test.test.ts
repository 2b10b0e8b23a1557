/** What `npm test` runs. */
import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { tasks } from '../support/passes.ts'
import { root } from '../support/run.ts'

const test = suite('scripts/test')

const filesOf = (words: string[]): Set<string> => new Set(tasks(words).map(({ file }) => file))
const testFiles = readdirSync(join(root, 'test'), { recursive: true, encoding: 'utf8' })
const every = new Set(testFiles.filter((file) => file.endsWith('.test.ts')))

test('--all is every file there is, whatever words are beside it', () => {
  assert.equal(filesOf(['--all']), every)
  assert.equal(tasks(['wire', '--all']), tasks(['--all']))
})

test('words select files by their names, in every pass', () => {
  assert.equal(filesOf(['scripts/test.', 'floors']), new Set(['floors.test.ts', 'scripts/test.test.ts']))
  assert.equal(tasks(['--everything']), [])
  assert.equal(
    tasks(['stream/frames']).map(({ pass }) => pass),
    ['newest CRIU', 'newest CRIU, newest LTS of Node.js', 'no splice, no CRIU'],
  )
})

test('without words it is less: what the real CRIU is for, both data paths, a part of the fault matrix', () => {
  const quick = filesOf([])
  for (const file of ['real-criu/handover', 'real-criu/loads', 'real-criu/faults', 'scripts/pipe'])
    assert.ok(quick.has(`${file}.test.ts`), file)
  assert.not.ok(quick.has('real-criu/soak.test.ts'))
  const both = tasks([]).filter(({ file }) => file === 'stream/send-receive.test.ts')
  assert.equal(new Set(both.map(({ env }) => env.FERRY_NO_SPLICE)), new Set([undefined, '1']))
  assert.ok(tasks([]).every(({ env }) => env.FERRY_TESTS === 'quick'))
})

test('the soak with the real CRIU is first, once, and may take longer than ten minutes', () => {
  const all = tasks(['--all'])
  const soaks = all.filter(({ file, env }) => file === 'real-criu/soak.test.ts' && env.FERRY_CRIU !== 'none')
  assert.is(soaks.length, 1)
  assert.equal(all[0], soaks[0])
  assert.ok((soaks[0]?.limitMs ?? 0) > 15 * 60_000)
})

test.run()
