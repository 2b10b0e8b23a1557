import { parseArgs } from 'node:util'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { dumpOptions, readDumpOptions } from '../../lib/cli/dump-options.ts'
import { throwsFault } from '../expect.ts'

const test = suite('cli/dump-options')

const dump = (...args: string[]) => readDumpOptions(parseArgs({ args, options: dumpOptions }).values, [])

test('a hand-over is of a tree, or is settled', () => {
  const common = { pid: 17, criu: undefined, criuOptions: [], command: 'ssh host' }
  assert.equal(dump('--via', 'ssh host', '-t', '17').job, { kind: 'hand-over', ...common, until: 'running' })
  assert.equal(dump('--via', 'ssh host', '-t', '17', '--until', 'sealed').job, {
    ...{ kind: 'hand-over', ...common, until: 'sealed' },
  })
  assert.equal(dump('--via', 'ssh host', '--settle', 'web-1').job, {
    ...{ kind: 'settle', settled: 'web-1', command: 'ssh host' },
  })
  assert.match(throwsFault('USAGE', () => dump('--via', 'ssh host')).message, '--tree is missing')
})

test('a reader has longer than a target, and each has what is asked for', () => {
  assert.is(dump('-t', '17').timeoutMs, 300_000)
  assert.is(dump('-t', '17', '--timeout', '5').timeoutMs, 5000)
  assert.is(dump('-t', '17', '--via', 'ssh host').timeoutMs, 60_000)
  assert.is(dump('-t', '17', '--via', 'ssh host', '--timeout', '2.5').timeoutMs, 2500)
})

test('what belongs to a hand-over needs one', () => {
  assert.match(throwsFault('USAGE', () => dump('-t', '17', '--until', 'sealed')).message, 'no --via')
  assert.match(throwsFault('USAGE', () => dump('--settle', 'web-1')).message, '--via is missing')
})

test('images of a directory or of a criu that is waited for', () => {
  assert.equal(dump('--from-dir', 'images').job, { kind: 'directory', path: 'images' })
  const { job, directory } = dump('--listen', '-D', 'work')
  assert.equal([job, directory], [{ kind: 'listener' }, 'work'])
})

test.run()
