import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { getHeapSpaceStatistics } from 'node:v8'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { makePipe } from '../../lib/kernel/fd.ts'
import * as libc from '../../lib/kernel/libc.ts'
import { allowWriting, discard, giveBack, HUGE_PAGE, mapMemory } from '../../lib/kernel/mapped-memory.ts'
import { closeFd } from '../../lib/kernel/readiness.ts'
import { vmspliceAll } from '../../lib/kernel/transfer.ts'
import { throwsFault } from '../expect.ts'
import { eventually, root, run } from '../support/run.ts'

const test = suite('kernel/mapped-memory')

const MIB = 2 ** 20

test('a region is aligned for huge pages, reads zeros and is writable to its last byte', () => {
  const region = mapMemory(2 * HUGE_PAGE)
  assert.is(region.address % BigInt(HUGE_PAGE), 0n)
  assert.is(region.bytes, 2 * HUGE_PAGE)
  assert.is(region.window.length, 2 * HUGE_PAGE)
  assert.ok(Buffer.alloc(2 * HUGE_PAGE).equals(region.window))
  region.window.fill(0xa5)
  assert.is(region.window[2 * HUGE_PAGE - 1], 0xa5)
})

test('the window and the address are the same memory', () => {
  const { address, window } = mapMemory(HUGE_PAGE)
  window.set(Buffer.from('ferry'), 100)
  const [out, into] = makePipe()
  assert.is(libc.write(into, address + 100n, 5), 5)
  assert.is(libc.read(out, address + 200n, 5), 5)
  assert.is(Buffer.from(window.subarray(200, 205)).toString(), 'ferry')
  closeFd(out)
  closeFd(into)
})

test('regions do not overlap', () => {
  const [one, two] = [mapMemory(HUGE_PAGE), mapMemory(HUGE_PAGE)]
  one.window.fill(1)
  two.window.fill(2)
  assert.is(one.window[HUGE_PAGE - 1], 1)
  assert.is(one.window[0], 1)
})

test('discarded memory reads zeros, its neighbours stay, and it can be written again', () => {
  const { address, window } = mapMemory(3 * HUGE_PAGE)
  window.fill(7)
  discard(address + BigInt(HUGE_PAGE), HUGE_PAGE)
  assert.is(window[HUGE_PAGE - 1], 7)
  assert.ok(Buffer.alloc(HUGE_PAGE).equals(window.subarray(HUGE_PAGE, 2 * HUGE_PAGE)))
  assert.is(window[2 * HUGE_PAGE], 7)
  window[HUGE_PAGE] = 9
  assert.is(window[HUGE_PAGE], 9)
})

test('what may not be written can be read, lent and discarded, and ends whoever writes there', async () => {
  const { address, window } = mapMemory(3 * HUGE_PAGE)
  const middle = address + BigInt(HUGE_PAGE)
  window.fill(7)
  assert.ok(allowWriting(middle, HUGE_PAGE, false))
  const [out, into] = makePipe()
  assert.is(libc.write(into, middle, 4096), 4096)
  assert.is(libc.read(out, middle, 4096), -14, 'EFAULT')
  assert.is(libc.read(out, address, 4096), 4096)
  const lent = { address: middle, window: window.subarray(HUGE_PAGE, HUGE_PAGE + 4096) }
  await vmspliceAll([lent], into)
  assert.is(libc.read(out, address, 4096), 4096)
  assert.is(window[HUGE_PAGE], 7)
  window[HUGE_PAGE - 1] = 8
  window[2 * HUGE_PAGE] = 8
  discard(middle, HUGE_PAGE)
  assert.is(window[HUGE_PAGE], 0)
  assert.ok(allowWriting(middle, HUGE_PAGE, true))
  window[HUGE_PAGE] = 9
  closeFd(out)
  closeFd(into)
  const path = join(root, 'lib', 'kernel', 'mapped-memory.ts')
  const writer = `
const { allowWriting, mapMemory } = await import(process.argv[1])
const { address, window } = mapMemory(2 ** 21)
allowWriting(address, 2 ** 21, false)
console.log(window[0])
window[0] = 1
console.log('alive')`
  const ran = await run(process.execPath, ['--import', 'tsx', '--input-type=module', '-e', writer, path], { cwd: root })
  assert.equal([ran.signal, ran.stdout.toString()], ['SIGSEGV', '0\n'], ran.stderr)
})

test('other people’s memory is left out of core dumps and of forked children', () => {
  const { address, window } = mapMemory(HUGE_PAGE)
  window[0] = 1
  const maps = readFileSync('/proc/self/smaps', 'utf8').split(/^(?=[0-9a-f]+-[0-9a-f]+ )/m)
  const ours = maps.find((map) => {
    const [, from = '0', to = '0'] = /^([0-9a-f]+)-([0-9a-f]+) /.exec(map) ?? []
    return BigInt(`0x${from}`) <= address && address < BigInt(`0x${to}`)
  })
  const flags = /^VmFlags: (.*)$/m.exec(ours ?? '')?.[1]?.split(' ') ?? []
  assert.ok(flags.includes('dd'), `do not dump: ${flags}`)
  assert.ok(flags.includes('dc'), `do not copy on fork: ${flags}`)
})

test('more than there can be is MEMORY', () => {
  assert.match(throwsFault('MEMORY', () => mapMemory(2 ** 50)).message, 'ENOMEM')
})

/** What V8 holds for new objects, bytes. */
function newSpace(): number {
  return getHeapSpaceStatistics().find(({ space_name }) => space_name === 'new_space')?.physical_space_size ?? 0
}

test('what V8 took for new objects is given back', async () => {
  const allocate = (): object[] => Array.from({ length: 500_000 }, (_, number) => ({ number }))
  await eventually(() => (allocate().length > 0 && newSpace() > 12 * MIB) || undefined, 'a large new space')
  await giveBack()
  assert.ok(newSpace() < 4 * MIB, `V8 has kept ${newSpace()} bytes`)
})

test.run()
