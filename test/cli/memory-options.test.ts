import { totalmem } from 'node:os'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { readMemory } from '../../lib/cli/memory-options.ts'
import { throwsFault } from '../expect.ts'

const test = suite('cli/memory-options')

test('memory is a size, or four fifths of what the machine or our control group has; nothing of it is reserved', () => {
  assert.equal(readMemory({ 'max-memory': '512M' }), { maxMemory: 512 * 2 ** 20, reserve: 0 })
  const here = Math.min(totalmem(), process.constrainedMemory() || totalmem())
  assert.equal(readMemory({}), { maxMemory: Math.floor(here * 0.8), reserve: 0 })
  throwsFault('USAGE', () => readMemory({ 'max-memory': 'lots' }))
})

test('what is reserved is a part of it', () => {
  assert.equal(readMemory({ 'max-memory': '2G', reserve: '2G' }), { maxMemory: 2 ** 31, reserve: 2 ** 31 })
  const fault = throwsFault('USAGE', () => readMemory({ 'max-memory': '1G', reserve: '2G' }))
  assert.match(fault.message, '--reserve 2G')
  throwsFault('USAGE', () => readMemory({ reserve: 'some' }))
})

test.run()
