import { setTimeout } from 'node:timers/promises'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { openFailureLog } from '../../lib/cache/failure-log.ts'
import { Fault } from '../../lib/fault.ts'
import type { Progress } from '../../lib/progress.ts'

const test = suite('cache/failure-log')

function lines() {
  const told: string[] = []
  const report = (progress: Progress): void => {
    if (progress.event === 'failed') told.push(`${progress.what}: ${progress.fault.message}`)
  }
  return { told, report }
}

const fault = (what: string): Fault => new Fault('LINK', what, { hint: 'a hint' })

test('the first failure of an origin is reported as it is, the others of that second as a number', async () => {
  const { told, report } = lines()
  const failures = openFailureLog(report)
  for (let n = 0; n < 1000; n++) failures.tell('a', `a:${n}`, fault(`number ${n}`))
  failures.tell('b', 'b:0', fault('another'))
  assert.equal(told, ['a:0: number 0', 'b:0: another'])
  await setTimeout(1200)
  assert.equal(told.slice(2), ['999 more connections of a: the last one: number 999'])
  failures.tell('a', 'a:1000', fault('number 1000'))
  assert.is(told.length, 3, 'that line was the next second of a')
  failures.tell('b', 'b:1', fault('again'))
  assert.is(told.at(-1), 'b:1: again')
  failures.close()
  assert.is(told.at(-1), '1 more connection of a: the last one: number 1000')
})

test('the number of lines a second can be set, and too many origins are counted as one', () => {
  const { told, report } = lines()
  const failures = openFailureLog(report, 3)
  for (let n = 0; n < 5; n++) failures.tell('a', `a:${n}`, fault('no'))
  assert.is(told.length, 3)
  for (let n = 0; n < 1000; n++) failures.tell(`peer ${n}`, `peer ${n}`, fault('no'))
  assert.ok(told.length < 100, `${told.length} lines`)
  failures.close()
  assert.ok(told.some((line) => /^\d+ more connections of other peers: the last one: no$/.test(line)))
})

test.run()
