import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import {
  decodeHoldings,
  encodeHoldings,
  type Holding,
  holdingStates,
  LONGEST_LISTING,
} from '../../lib/format/holdings.ts'
import { LARGEST_IMAGE } from '../../lib/format/image-list.ts'
import { snapshotId } from '../../lib/format/names.ts'
import { throwsFault } from '../expect.ts'

const test = suite('format/holdings')

const most = (name: string): Holding => ({
  id: snapshotId(name.padEnd(64, 'x')),
  ...{ state: 'chain', pinned: false, count: 2 ** 32 - 1, shared: 4096, bytes: LARGEST_IMAGE, seconds: 2 ** 32 - 1 },
})

test('every state and the largest numbers, both ways', () => {
  const states = [false, true].flatMap((pinned) => holdingStates.map((state) => ({ ...most(state), state, pinned })))
  const holdings = [...states, most('last')]
  assert.equal(decodeHoldings(encodeHoldings({ total: holdings.length, holdings: holdings })), {
    total: holdings.length,
    holdings,
  })
  assert.equal(decodeHoldings(encodeHoldings({ total: 0, holdings: [] })), { total: 0, holdings: [] })
  const old = decodeHoldings(encodeHoldings({ total: 1, holdings: [{ ...most('a'), seconds: 2 ** 33 + 0.5 }] }))
  assert.is(old.holdings[0]?.seconds, 2 ** 32 - 1)
  assert.is(
    decodeHoldings(encodeHoldings({ total: 1, holdings: [{ ...most('a'), seconds: 1.9 }] })).holdings[0]?.seconds,
    1,
  )
})

test('a list is cut at its limit, says so, and has the longest payload', () => {
  const many = Array.from({ length: 5000 }, (_, at) => most(`s${at}`))
  const bytes = encodeHoldings({ total: 5000, holdings: many })
  assert.is(bytes.length, LONGEST_LISTING)
  const { total, holdings } = decodeHoldings(bytes)
  assert.equal([total, holdings.length, holdings.at(-1)?.id], [5000, 4096, many[4095]?.id])
})

test('damage is refused: cut anywhere, a wrong total, an unknown state, a number or an entry too many', () => {
  const bytes = encodeHoldings({ total: 2, holdings: [most('a'), most('b')] })
  for (let end = 5; end < bytes.length; end++)
    throwsFault('FORMAT', () => decodeHoldings(bytes.subarray(0, end)), `${end}`)
  const changed = (at: number, value: number): Buffer => {
    const copy = Buffer.from(bytes)
    copy.writeUInt8(value, at)
    return copy
  }
  for (const total of [0, 1, 3]) throwsFault('FORMAT', () => decodeHoldings(changed(0, total)), `total ${total}`)
  for (const state of [10, 127, 138, 255])
    throwsFault('FORMAT', () => decodeHoldings(changed(4 + 65, state)), `state ${state}`)
  throwsFault('LIMIT', () => decodeHoldings(changed(4 + 65 + 5, 1)))
  throwsFault('NAME', () => decodeHoldings(changed(5, 0x2f)))
  const short = encodeHoldings({ total: 1, holdings: [{ ...most('a'), id: snapshotId('a') }] }).subarray(4)
  const total = Buffer.alloc(4)
  total.writeUInt32LE(4097)
  throwsFault('LIMIT', () => decodeHoldings(Buffer.concat([total, ...Array.from({ length: 4097 }, () => short)])))
})

test.run()
