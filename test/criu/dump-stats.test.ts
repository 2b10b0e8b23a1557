import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { frozenMs } from '../../lib/criu/dump-stats.ts'
import { temporary } from '../support/run.ts'

const test = suite('criu/dump-stats')

test('how long the tasks were frozen, in milliseconds; unknown without a whole file', () => {
  const { path, remove } = temporary()
  assert.is(frozenMs(path), undefined)
  const stats = Buffer.from('405910550633095713000000' + '0a1108ac0210f0930918072005' + '2864' + '9a060161', 'hex')
  writeFileSync(join(path, 'stats-dump'), stats)
  assert.is(frozenMs(path), 150)
  writeFileSync(join(path, 'stats-dump'), stats.subarray(0, 10))
  assert.is(frozenMs(path), undefined)
  remove()
})

test.run()
