import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { viaPatience } from '../../lib/cli/via-options.ts'
import { throwsFault } from '../expect.ts'

const test = suite('cli/via-options')

test('a hand-over is of a tree, or is settled', () => {
  assert.is(viaPatience({ via: 'ssh host' }, '17'), 60_000)
  assert.is(viaPatience({ via: 'ssh host', timeout: '2.5' }, '17'), 2500)
  assert.is(viaPatience({ via: 'ssh host', settle: 'web-1' }, undefined), 60_000)
  assert.match(throwsFault('USAGE', () => viaPatience({ via: 'ssh host' }, undefined)).message, '--tree is missing')
})

test('a reader has longer than a target, and each has what is asked for', () => {
  assert.is(viaPatience({}, undefined), 300_000)
  assert.is(viaPatience({ timeout: '5' }, '17'), 5000)
})

test('what belongs to a hand-over needs one', () => {
  assert.match(throwsFault('USAGE', () => viaPatience({ until: 'sealed' }, '17')).message, 'no --via')
})

test.run()
