import fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import {
  decodeLength,
  decodeRequest,
  encodeReply,
  encodeRequest,
  LENGTH_BYTES,
  LONGEST_REQUEST,
} from '../../lib/format/streamer.ts'
import { onlyFaults, throwsFault } from '../expect.ts'
import { decodeReply } from '../support/fake-criu.ts'

const test = suite('format/streamer')

/** `criu dump --stream` asking for inventory.img: length 15, field 1 of wire type 2, 13 bytes. */
const REQUEST = '0f000000 0a 0d 696e76656e746f72792e696d67'

function fromHex(hex: string): Buffer {
  return Buffer.from(hex.replaceAll(' ', ''), 'hex')
}

function length(value: number): Buffer {
  const bytes = Buffer.alloc(LENGTH_BYTES)
  bytes.writeUInt32LE(value)
  return bytes
}

test('a request is pinned, both ways', () => {
  assert.equal(encodeRequest('inventory.img'), fromHex(REQUEST))
  assert.is(decodeLength(fromHex(REQUEST).subarray(0, 4)), 15)
  assert.is(decodeRequest(fromHex(REQUEST).subarray(4)), 'inventory.img')
})

test('a reply is pinned, both ways', () => {
  assert.equal(encodeReply(true), fromHex('02000000 08 01'))
  assert.equal(encodeReply(false), fromHex('02000000 08 00'))
  assert.is(decodeReply(fromHex('08 01')), true)
  assert.is(decodeReply(fromHex('08 00')), false)
  throwsFault('CRIU_PROTOCOL', () => decodeReply(fromHex('10 01')))
})

test('a reply cut at any byte is refused', () => {
  for (const hex of ['', '08']) throwsFault('CRIU_PROTOCOL', () => decodeReply(fromHex(hex)), hex)
})

test('a length has a limit', () => {
  assert.is(decodeLength(length(1)), 1)
  assert.is(decodeLength(length(LONGEST_REQUEST)), 512)
  for (const wrong of [0, LONGEST_REQUEST + 1, 16 * 2 ** 20, 2 ** 32 - 1]) {
    throwsFault('CRIU_PROTOCOL', () => decodeLength(length(wrong)), `${wrong}`)
  }
})

test('unknown fields are passed over, the last name counts, as protobuf has it', () => {
  assert.is(decodeRequest(fromHex('10 05 0a 01 61 1a 02 7878 25 01020304 29 0102030405060708')), 'a')
  assert.is(decodeRequest(fromHex('0a 01 61 0a 01 62')), 'b')
})

test('a request cut at any byte, or without a name, is refused', () => {
  const body = fromHex(REQUEST).subarray(4)
  for (let cut = 0; cut < body.length; cut++) throwsFault('CRIU_PROTOCOL', () => decodeRequest(body.subarray(0, cut)))
  throwsFault('CRIU_PROTOCOL', () => decodeRequest(fromHex('10 01')), 'no name')
  throwsFault('CRIU_PROTOCOL', () => decodeRequest(fromHex('08 01')), 'a number for a name')
  throwsFault('CRIU_PROTOCOL', () => decodeRequest(fromHex('0a ffffffff0f 61')), 'a length above the body')
  throwsFault('CRIU_PROTOCOL', () => decodeRequest(fromHex('0b')), 'an open group')
})

test('names from CRIU pass the one door', () => {
  for (const name of ['', '.', '..', '../x', 'a/b', '/x', 'a\0', '.x', 'é', 'a'.repeat(129)]) {
    throwsFault('NAME', () => decodeRequest(encodeRequest(name).subarray(LENGTH_BYTES)), name)
  }
})

test('random and changed requests give a name or a Fault', () => {
  const body = fromHex(REQUEST).subarray(4)
  const changed = fc.array(fc.tuple(fc.nat(body.length - 1), fc.nat(255)), { maxLength: 5 }).map((changes) => {
    const bytes = Buffer.from(body)
    for (const [at, value] of changes) bytes.writeUInt8(value, at)
    return bytes
  })
  let names = 0
  fc.assert(
    fc.property(fc.oneof(fc.uint8Array({ maxLength: 64 }), changed), (bytes) => {
      const name = onlyFaults(() => decodeRequest(bytes))
      if (name === undefined) return
      names++
      assert.match(name, /^[\w.+:@=-]{1,128}$/)
    }),
    { numRuns: 5000 },
  )
  assert.ok(names > 100, `only ${names} names`)
})

test.run()
