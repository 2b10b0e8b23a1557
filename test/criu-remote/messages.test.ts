import fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import {
  decode,
  decodeSnapshotId,
  ENOENT,
  encode,
  encodeIds,
  LONGEST_MESSAGE,
  LONGEST_STRING,
  MessageDecoder,
  openMode,
  type RemoteRequest,
  requestOf,
} from '../../lib/criu-remote/messages.ts'
import { localImageEntry, localImageReplyEntry, remoteImageEntry } from '../../lib/format/criu-messages.ts'
import { onlyFaults, throwsFault } from '../expect.ts'

const test = suite('criu-remote/messages')

function hex(text: string): Buffer {
  return Buffer.from(text.replaceAll(' ', ''), 'hex')
}

function bodies(bytes: Uint8Array, step = bytes.length): Buffer[] {
  const decoder = new MessageDecoder()
  const found: Buffer[] = []
  for (let at = 0; at < bytes.length; ) {
    const { taken, body } = decoder.push(bytes.subarray(at, at + step))
    if (body !== undefined) found.push(body)
    at += taken
  }
  decoder.end()
  return found
}

const only = (bytes: Uint8Array): Buffer => bodies(bytes)[0] as Buffer
const requestIn = (text: string): RemoteRequest => requestOf(decode(localImageEntry, only(hex(text))))

test('the bytes of the last protocol are pinned, encoded and decoded', () => {
  const pinned = [
    ['06000000 0a00 1200 1801', { name: '', snapshot_id: '', open_mode: openMode.write }],
    ['06000000 0a00 1200 1800', { name: '', snapshot_id: '', open_mode: openMode.read }],
    ['0d000000 0a06 706172656e74 1200 188008', { name: 'parent', snapshot_id: '', open_mode: openMode.append }],
    ['0c000000 0a06 706172656e74 1200 1800', { name: 'parent', snapshot_id: '', open_mode: openMode.read }],
    [
      '19000000 0a0d 696e76656e746f72792e696d67 1206 2f746d702f64 1801',
      { name: 'inventory.img', snapshot_id: '/tmp/d', open_mode: openMode.write },
    ],
  ] as const
  for (const [text, image] of pinned) {
    assert.equal(encode(localImageEntry, image), hex(text))
    assert.equal(decode(localImageEntry, only(hex(text))), image)
  }
  const header = hex('1b000000 0a0d 696e76656e746f72792e696d67 1206 2f746d702f64 1801 204d')
  const image = { name: 'inventory.img', snapshot_id: '/tmp/d', open_mode: openMode.write, size: 77 }
  assert.equal(encode(remoteImageEntry, image), header)
  assert.equal(decode(remoteImageEntry, only(header)), image)
  assert.equal(encode(localImageReplyEntry, { error: 0 }), hex('02000000 0800'))
  assert.equal(encode(localImageReplyEntry, { error: ENOENT }), hex('02000000 0802'))
  assert.is(decode(localImageReplyEntry, only(hex('02000000 0802'))).error, ENOENT)
  assert.equal(encodeIds(['/tmp/d']), hex('08000000 0a06 2f746d702f64'))
  assert.is(decodeSnapshotId(only(hex('08000000 0a06 2f746d702f64'))), '/tmp/d')
})

test('requests of the last protocol', () => {
  assert.equal(requestIn('06000000 0a00 1200 1801'), { kind: 'finish', of: 'dump' })
  assert.equal(requestIn('06000000 0a00 1200 1800'), { kind: 'finish', of: 'restore' })
  assert.equal(requestIn('0d000000 0a06 706172656e74 1200 188008'), { kind: 'push', append: true })
  assert.equal(requestIn('0c000000 0a06 706172656e74 1200 1800'), { kind: 'pull' })
  const image = { name: 'core-1.img', snapshot: 'dump/zdtm/1' }
  const request = (mode: number): RemoteRequest =>
    requestOf({ name: image.name, snapshot_id: image.snapshot, open_mode: mode })
  assert.equal(request(openMode.read), { kind: 'read', ...image })
  assert.equal(request(openMode.write), { kind: 'write', ...image, append: false })
  assert.equal(request(openMode.append), { kind: 'write', ...image, append: true })
})

test('requests of trees before February 2019', () => {
  const old = (name: string, mode: number) => requestOf({ name, snapshot_id: 'null', open_mode: mode })
  assert.equal(old('DUMP_FINISH', openMode.write), { kind: 'finish', of: 'dump' })
  assert.equal(old('RESTORE_FINISH', openMode.read), { kind: 'finish', of: 'restore' })
  assert.equal(old('parent', openMode.append), { kind: 'push', append: true })
  assert.equal(old('parent', openMode.read), { kind: 'pull' })
  assert.equal(requestOf({ name: 'mm-1.img', snapshot_id: 'null', open_mode: 0 }).kind, 'read', 'a directory null')
})

test('requests that no client sends are refused', () => {
  const image = { name: 'mm-1.img', snapshot_id: '/d' }
  for (const mode of [2, 3, 0x401, 0x441, 0x241, 2 ** 31]) {
    throwsFault('CRIU_PROTOCOL', () => requestOf({ ...image, open_mode: mode }), `${mode}`)
  }
  throwsFault('CRIU_PROTOCOL', () => requestOf({ name: 'mm-1.img', snapshot_id: '', open_mode: 0 }))
  for (const name of ['', '../mm-1.img', 'a/b', '..', '.x']) {
    throwsFault('NAME', () => requestOf({ ...image, name, open_mode: 1 }), name)
  }
})

test('sizes above 2 and 4 GiB are decoded, and those that no file has are refused', () => {
  const image = { name: 'pages-1.img', snapshot_id: '/d', open_mode: openMode.write }
  for (const size of [0, 4096, 2 ** 31 - 1, 2 ** 31, 2 ** 32, 2 ** 40 + 1, Number.MAX_SAFE_INTEGER]) {
    assert.is(decode(remoteImageEntry, only(encode(remoteImageEntry, { ...image, size }))).size, size)
  }
  const most = only(encode(remoteImageEntry, { ...image, size: Number.MAX_SAFE_INTEGER }))
  for (const tail of ['8080808080808010', 'ffffffffffffffffff01']) {
    const larger = Buffer.concat([most.subarray(0, most.lastIndexOf(0x20) + 1), hex(tail)])
    throwsFault('CRIU_PROTOCOL', () => decode(remoteImageEntry, larger), tail)
  }
})

test('messages are decoded from pieces of any size', () => {
  const all = Buffer.concat([
    encode(localImageEntry, { name: 'parent', snapshot_id: '', open_mode: openMode.append }),
    encodeIds(['/tmp/1']),
    encodeIds(['x'.repeat(LONGEST_STRING)]),
    encode(localImageReplyEntry, { error: 0 }),
  ])
  const whole = bodies(all)
  assert.is(whole.length, 4)
  for (const step of [1, 2, 3, 5, 4096]) assert.equal(bodies(all, step), whole, `${step}`)
  const decoder = new MessageDecoder()
  assert.is(decoder.wanted, 4)
  decoder.push(all.subarray(0, 5))
  assert.is(decoder.wanted, 12)
})

test('a decoder takes no byte behind its message', () => {
  const message = encode(localImageReplyEntry, { error: 0 })
  const { taken, body } = new MessageDecoder().push(Buffer.concat([message, Buffer.from('bytes of an image')]))
  assert.is(taken, message.length)
  assert.is(decode(localImageReplyEntry, body as Buffer).error, 0)
})

test('a stream may end between messages only', () => {
  const message = encodeIds(['/tmp/1'])
  for (let end = 1; end < message.length; end++) {
    throwsFault('CRIU_PROTOCOL', () => bodies(message.subarray(0, end)), `after ${end}`)
  }
  assert.equal(bodies(Buffer.alloc(0)), [])
})

test('a length has a limit', () => {
  const head = Buffer.alloc(4)
  for (const wrong of [0, LONGEST_MESSAGE + 1, 2 ** 31, 2 ** 32 - 1]) {
    head.writeUInt32LE(wrong)
    throwsFault('CRIU_PROTOCOL', () => new MessageDecoder().push(head), `${wrong}`)
  }
  const longest = encode(localImageEntry, {
    name: 'x'.repeat(LONGEST_STRING),
    snapshot_id: 'y'.repeat(LONGEST_STRING),
    open_mode: 0,
  })
  assert.is(decode(localImageEntry, only(longest)).snapshot_id.length, LONGEST_STRING)
})

test('strings that are too long, have a NUL or are no UTF-8, and missing fields are refused', () => {
  const id = (bytes: Uint8Array): Buffer =>
    Buffer.concat([hex('0a'), bytes.length < 128 ? Buffer.of(bytes.length) : hex('8020'), bytes])
  assert.is(decodeSnapshotId(id(Buffer.from('/tmp/Zoë'))), '/tmp/Zoë')
  throwsFault('CRIU_PROTOCOL', () => decodeSnapshotId(id(Buffer.alloc(4096, 'x'))))
  throwsFault('CRIU_PROTOCOL', () => decodeSnapshotId(id(Buffer.from('/tmp\0/d'))))
  throwsFault('CRIU_PROTOCOL', () => decodeSnapshotId(id(hex('c328'))))
  throwsFault('CRIU_PROTOCOL', () => decodeSnapshotId(hex('0a00')))
  throwsFault('CRIU_PROTOCOL', () => decode(localImageEntry, hex('0a0161 1800')))
  throwsFault('CRIU_PROTOCOL', () => decode(localImageEntry, hex('0a0161 0801 1800')))
  throwsFault('CRIU_PROTOCOL', () => decode(remoteImageEntry, hex('0a0161 120162 1801')))
  throwsFault('CRIU_PROTOCOL', () => decode(localImageReplyEntry, Buffer.alloc(0)))
})

test('unknown fields are skipped, and the last value counts, as protobuf demands', () => {
  const body = hex('0a0161 120162 1801 0a0163 2a0178 3001 1800')
  assert.equal(decode(localImageEntry, body), { name: 'c', snapshot_id: 'b', open_mode: 0 })
})

test('random bytes decode to a value or a Fault', () => {
  const messages = [localImageEntry, remoteImageEntry, localImageReplyEntry]
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 64 }), (bytes) => {
      for (const message of messages) onlyFaults(() => decode(message, bytes))
      onlyFaults(() => decodeSnapshotId(bytes))
      onlyFaults(() => bodies(bytes))
    }),
  )
})

test.run()
