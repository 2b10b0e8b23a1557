import { PassThrough } from 'node:stream'
import { crc32 } from 'node:zlib'
import fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Fault } from '../../lib/fault.ts'
import { encodeFrame, type Frame, HEADER_BYTES } from '../../lib/format/frame.ts'
import { encodePreamble, PREAMBLE_BYTES } from '../../lib/format/preamble.ts'
import { makePipe } from '../../lib/kernel/fd.ts'
import * as libc from '../../lib/kernel/libc.ts'
import { closeFd } from '../../lib/kernel/readiness.ts'
import { fdLink } from '../../lib/stream/fd-link.ts'
import { frameReader, frameWriter } from '../../lib/stream/frames.ts'
import type { Inlet } from '../../lib/stream/link.ts'
import { duplexLink } from '../../lib/stream/node-link.ts'
import { reasonOf, rejectsFault, turns, within } from '../expect.ts'
import { anyFrame } from '../support/any-frame.ts'
import { data, end, entry, id, inletOf, pipeLinks, stream } from './snapshots.ts'

const test = suite('stream/frames')

const frames: Frame[] = [
  { type: 'hello' },
  { type: 'snapshot', id },
  { type: 'refused', code: 'MEMORY', reason: 'full' },
  end(entry('inventory.img', Buffer.from('ferry'))),
  { type: 'ack', channel: 3, offset: 4097 },
]

/** All frames of a stream; the bytes of data frames are passed over. */
async function readAll(inlet: Inlet): Promise<Frame[]> {
  const reader = frameReader(inlet)
  const got: Frame[] = []
  for (;;) {
    const frame = await reader.next(anyFrame)
    if (frame === undefined) return got
    got.push(frame)
    if (frame.type === 'data' && !(await inlet.fill(Buffer.alloc(frame.length))))
      throw new Fault('TRUNCATED', 'in data')
  }
}

test('frames come out as they went in, whatever the chunks', async () => {
  const bytes = stream(...frames, data(1, 0, Buffer.alloc(100)), ...frames)
  for (const step of [1, 2, 3, 23, 24, 25, bytes.length]) {
    const got = await within(readAll(inletOf(bytes, step)))
    assert.equal(got, [...frames, { type: 'data', channel: 1, offset: 0, length: 100 }, ...frames], `step ${step}`)
  }
})

test('one byte at a time through a pipe of the kernel', async () => {
  const [out, into] = makePipe()
  const reading = readAll(fdLink(out, 'pipe').inlet)
  for (const byte of stream(...frames)) {
    libc.write(into, Buffer.of(byte), 1)
    await turns(2)
  }
  closeFd(into)
  assert.equal(await within(reading), frames)
  closeFd(out)
})

test('an end between two frames is an end, any other is TRUNCATED', async () => {
  const parts = [encodePreamble(), ...frames.map(encodeFrame)]
  const seams = new Set([0])
  let length = 0
  for (const part of parts) {
    length += part.length
    seams.add(length)
  }
  const bytes = Buffer.concat(parts)
  for (let cut = 0; cut <= bytes.length; cut++) {
    const reading = readAll(inletOf(bytes.subarray(0, cut)))
    if (seams.has(cut)) await within(reading)
    else await rejectsFault('TRUNCATED', reading, `cut at ${cut}`)
  }
})

test('where a frame is expected, the end is TRUNCATED', async () => {
  await rejectsFault('TRUNCATED', frameReader(inletOf(Buffer.alloc(0))).expect(anyFrame))
  await rejectsFault('TRUNCATED', frameReader(inletOf(encodePreamble())).expect(anyFrame))
})

test('another stream is FORMAT, another version VERSION', async () => {
  await rejectsFault('FORMAT', readAll(inletOf(Buffer.from('HTTP/1.1 400 Bad Request\r\n\r\n'))))
  await rejectsFault('FORMAT', readAll(inletOf(Buffer.alloc(PREAMBLE_BYTES))))
  await rejectsFault(
    'VERSION',
    readAll(inletOf(Buffer.from('9346455252590d0a02000000000000000000000004314fed', 'hex'))),
  )
})

/** Feeds `bytes` and tells how much memory they made the reader hold while it waits for more. */
async function heldAfter(bytes: Buffer): Promise<{ held: number; reading: Promise<unknown>; feed: PassThrough }> {
  const feed = new PassThrough()
  const before = process.memoryUsage().arrayBuffers
  const reading = frameReader(duplexLink(feed, 'feed').inlet).next(anyFrame)
  reading.catch(() => {})
  feed.write(bytes)
  await turns()
  return { held: process.memoryUsage().arrayBuffers - before, reading, feed }
}

function announce(type: number, length: number): Buffer {
  const header = encodeFrame({ type: 'data', channel: 0, offset: 0, length })
  header.writeUInt8(type)
  header.writeUInt32LE(crc32(header.subarray(0, 20)), 20)
  return Buffer.concat([encodePreamble(), header])
}

test('a header that announces 16 MiB is LIMIT before anything is allocated', async () => {
  for (const type of [1, 2, 3, 4, 5, 6, 16, 17, 18, 19, 20]) {
    const { held, reading, feed } = await heldAfter(announce(type, 16 * 2 ** 20))
    await rejectsFault('LIMIT', reading, `type ${type}`)
    assert.ok(held < 2 ** 20, `${held} bytes are held`)
    feed.destroy()
  }
})

test('the longest list, announced and not sent, is not allocated', async () => {
  const { held, reading, feed } = await heldAfter(announce(5, 9_502_736))
  assert.ok(held < 2 ** 20, `${held} bytes are held`)
  feed.end()
  await rejectsFault('TRUNCATED', reading)
})

test('random streams and changed ones give frames or a Fault, and an end', async () => {
  const whole = stream(...frames, data(1, 0, Buffer.alloc(50)), { type: 'sealed', digest: 1n })
  const changes = fc.array(fc.tuple(fc.nat(whole.length - 1), fc.nat(255)), { minLength: 1, maxLength: 4 })
  const changed = fc.tuple(changes, fc.nat(whole.length)).map(([list, cut]) => {
    const bytes = Buffer.from(whole)
    for (const [at, value] of list) bytes.writeUInt8(value, at)
    return bytes.subarray(0, cut)
  })
  const random = fc.uint8Array({ maxLength: 200 }).map((tail) => Buffer.concat([encodePreamble(), tail]))
  await fc.assert(
    fc.asyncProperty(fc.oneof(fc.uint8Array({ maxLength: 100 }), random, changed), async (bytes) => {
      await within(
        readAll(inletOf(bytes)).catch((error: unknown) => {
          if (!(error instanceof Fault)) throw error
        }),
      )
    }),
    { numRuns: 2000 },
  )
})

test('a writer starts with the preamble and keeps the order of its callers', async () => {
  const { from, to } = pipeLinks()
  const writer = frameWriter(from.outlet)
  await within(Promise.all(frames.map((frame) => writer.send(frame))))
  from.destroy()
  const bytes = Buffer.alloc(stream(...frames).length)
  assert.ok(await within(to.inlet.fill(bytes)))
  assert.equal(bytes, stream(...frames))
  assert.not(await within(to.inlet.fill(Buffer.alloc(1))))
  to.destroy()
})

test('only one caller has the outlet at a time', async () => {
  const { from, to } = pipeLinks()
  const writer = frameWriter(from.outlet)
  const turn = async (text: string): Promise<void> =>
    writer.exclusive(async (outlet) => {
      for (const letter of text) {
        await outlet.send(Buffer.from(letter), true)
        await turns(2)
      }
    })
  await within(Promise.all([turn('first'), turn('second'), turn('third')]))
  const bytes = Buffer.alloc(PREAMBLE_BYTES + 16)
  await within(to.inlet.fill(bytes))
  assert.is(bytes.toString('latin1', PREAMBLE_BYTES), 'firstsecondthird')
  from.destroy()
  to.destroy()
})

test('TLS where the wire should be is LINK, with the options to look at', async () => {
  const hello = Buffer.concat([Buffer.from('160301020001000001fc0303', 'hex'), Buffer.alloc(64)])
  const { message, hint } = await rejectsFault('LINK', frameReader(inletOf(hello)).next(anyFrame))
  assert.is(message, 'the other end speaks TLS, and this one does not')
  assert.is(hint, 'use --tls or --key-file at both ends or at none')
  await rejectsFault(
    'FORMAT',
    frameReader(inletOf(hello.fill(0x17, 0, 1))).next(anyFrame),
    'a record in the middle of TLS',
  )
})

test('the fault of a link that ends or breaks before its first byte names what may be missing', async () => {
  const ended = await rejectsFault('TRUNCATED', frameReader(inletOf(Buffer.alloc(0))).expect(anyFrame))
  assert.match(ended.hint ?? '', '--tls or --key-file')
  const broken = async (code: 'LINK' | 'IO', hint?: string): Promise<never> => {
    throw new Fault(code, 'broken', hint === undefined ? {} : { hint })
  }
  const reset = await rejectsFault('LINK', frameReader({ fill: () => broken('LINK') }).next(anyFrame))
  assert.is(reset.message, 'broken')
  assert.match(reset.hint ?? '', '--tls or --key-file')
  const known = await rejectsFault('LINK', frameReader({ fill: () => broken('LINK', 'own') }).next(anyFrame))
  assert.is(known.hint, 'own')
  assert.is((await rejectsFault('IO', frameReader({ fill: () => broken('IO') }).next(anyFrame))).hint, undefined)
})

test('after a failed write nothing is written any more, and each caller is rejected with its reason', async () => {
  const { from, to } = pipeLinks()
  const writer = frameWriter(from.outlet)
  const reason = new Error('in the middle of a frame')
  const failing = writer.exclusive(async () => {
    throw reason
  })
  const later = writer.send({ type: 'hello' })
  assert.is(await reasonOf(failing), reason)
  assert.is(await reasonOf(later), reason)
  assert.is(await reasonOf(writer.send({ type: 'hello' })), reason)
  from.destroy()
  assert.ok(await within(to.inlet.fill(Buffer.alloc(PREAMBLE_BYTES))))
  assert.not(await within(to.inlet.fill(Buffer.alloc(1))), 'nothing but the preamble')
  to.destroy()
})

test('a data frame’s header goes out without its bytes', () => {
  assert.is(encodeFrame({ type: 'data', channel: 1, offset: 0, length: 1000 }).length, HEADER_BYTES)
})

test.run()
