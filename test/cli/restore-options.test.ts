import { parseArgs } from 'node:util'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { readManualVerdict } from '../../lib/cli/manual-verdict-options.ts'
import { readRestoreOptions, restoreOptions } from '../../lib/cli/restore-options.ts'
import { throwsFault } from '../expect.ts'

const test = suite('cli/restore-options')

const values = (line: string) => parseArgs({ args: line.split(' '), options: restoreOptions }).values
const restore = (line: string, criuOptions: string[] = []) => readRestoreOptions(values(line), criuOptions)

test('a tree, a criu that is waited for, or a directory', () => {
  const { job, from, fromStdin } = restore('--criu c', ['--tcp-established'])
  assert.equal([job, from, fromStdin], [{ kind: 'tree', criu: 'c', criuOptions: ['--tcp-established'] }, '-', true])
  assert.equal(restore('--listen -D x').job, { kind: 'listener' })
  const directory = restore('--to-dir x --from fd:3')
  assert.equal([directory.job, directory.fromStdin], [{ kind: 'directory', path: 'x' }, false])
})

test('what does not go together', () => {
  for (const line of ['--listen', '--listen -D x --to-dir y', '-D x --to-dir y', '--snapshot ../x', '--timeout 0']) {
    throwsFault('USAGE', () => restore(line), line)
  }
  throwsFault('USAGE', () => restore('--to-dir x', ['-v4']))
})

test('a person gives one verdict', () => {
  assert.equal(readManualVerdict(values('--let-run a')), { id: 'a', verdict: 'go' })
  assert.equal(readManualVerdict(values('--drop a')), { id: 'a', verdict: 'drop' })
  assert.is(readManualVerdict(values('--from -')), undefined)
  throwsFault('USAGE', () => readManualVerdict(values('--let-run a --drop a')))
  throwsFault('USAGE', () => readManualVerdict(values('--drop ../a')))
})

test.run()
