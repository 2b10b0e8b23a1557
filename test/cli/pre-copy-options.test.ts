import { parseArgs } from 'node:util'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { preCopyOptions, readPreCopyOptions } from '../../lib/cli/pre-copy-options.ts'
import { throwsFault } from '../expect.ts'

const test = suite('cli/pre-copy-options')

function preCopy(line: string) {
  const args = ['--port', '9997', ...line.split(' ')]
  return readPreCopyOptions(parseArgs({ args, options: preCopyOptions }).values, ['-v4'])
}

test('a move has a rule when to stop', () => {
  const { job, cache, timeoutMs, directory } = preCopy('-t 17')
  assert.equal([cache.host, timeoutMs, directory], ['127.0.0.1', 60_000, undefined])
  assert.ok(job.kind === 'move')
  assert.equal([job.pid, job.until, job.criuOptions], [17, 'sealed', ['-v4']])
  assert.equal(job.rule, { mostRounds: 8, floor: 2 ** 20, downtimeGoalMs: undefined })
  const chosen = preCopy('-t 17 --max-rounds 3 --floor 64k --downtime-goal 0').job
  assert.ok(chosen.kind === 'move')
  assert.equal(chosen.rule, { mostRounds: 3, floor: 2 ** 16, downtimeGoalMs: 0 })
  for (const odd of ['--max-rounds 0', '--max-rounds 1001', '--floor much', '--downtime-goal 60001']) {
    throwsFault('USAGE', () => preCopy(`-t 17 ${odd}`), odd)
  }
})

test('a verdict needs no process', () => {
  assert.equal(preCopy('--settle web-1').job, { kind: 'settle', settled: 'web-1' })
  throwsFault('USAGE', () => preCopy('--settle web-1 -t 17'))
})

test.run()
