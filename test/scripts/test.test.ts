/** What `npm test` runs. */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { tasks } from '../support/passes.ts'

const test = suite('scripts/test')

const filesOf = (words: string[]): Set<string> => new Set(tasks(words).map(({ file }) => file))

test('--all is everything, as no word is, whatever words are beside it', () => {
  assert.equal(tasks(['--all']), tasks([]))
  assert.equal(tasks(['wire', '--all']), tasks([]))
  assert.ok(filesOf(['--all']).has('scripts/test.test.ts'))
})

test('words select files by their names', () => {
  assert.equal(filesOf(['scripts/test.', 'floors']), new Set(['floors.test.ts', 'scripts/test.test.ts']))
  assert.equal(tasks(['--everything']), [])
})

test('the soak with the real CRIU is first, once, and may take longer than ten minutes', () => {
  const soaks = tasks([]).filter(({ file, env }) => file === 'real-criu/soak.test.ts' && env.FERRY_CRIU !== 'none')
  assert.is(soaks.length, 1)
  assert.equal(tasks([])[0], soaks[0])
  assert.ok((soaks[0]?.limitMs ?? 0) > 15 * 60_000)
})

test.run()
