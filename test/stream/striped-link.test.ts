/** Several connections as one link: order, what a slow one may hold up, and connections that bring wrong chunks. */
import fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Fault } from '../../lib/fault.ts'
import { LARGEST_IMAGE } from '../../lib/format/image-list.ts'
import { CHUNK_HEADER_BYTES, decodeChunk, encodeChunk, MOST_CHUNK } from '../../lib/format/stripes.ts'
import type { Link } from '../../lib/stream/link.ts'
import { CHUNK_BYTES, stripedLink } from '../../lib/stream/striped-link.ts'
import { rejectsFault, turns, waits, within } from '../expect.ts'
import { cable } from './cables.ts'
import { bytesOf } from './snapshots.ts'

const test = suite('stream/striped-link')

/** A header, and the bytes. */
function chunk(number: number, bytes: Uint8Array, length = bytes.length): Buffer {
  const header = Buffer.alloc(CHUNK_HEADER_BYTES)
  encodeChunk(header, { number, length })
  return Buffer.concat([header, bytes])
}

interface Spy extends Link {
  /** Bytes that were read. */
  taken: number
  destroyed: boolean
  sent: Buffer[]
}

/** Brings `bytes`, at most `step` at a time, and then ends or stays silent. Each send awaits `take`. */
function spy(bytes: Buffer, { step = 1 << 20, ends = true, take = async () => {} } = {}): Spy {
  let wake = (_error: Error): void => {}
  async function read(into: Uint8Array): Promise<number> {
    // As with real connections, not all bring their bytes at the same moment.
    if (bytes.length % 3 === 0) await null
    const part = bytes.subarray(link.taken, link.taken + Math.min(step, into.length))
    if (part.length === 0 && !ends) return new Promise((_resolve, reject) => (wake = reject))
    into.set(part)
    link.taken += part.length
    return part.length
  }
  const link: Spy = {
    taken: 0,
    destroyed: false,
    sent: [],
    inlet: {
      read,
      async fill(into) {
        for (let at = 0; at < into.length; ) {
          const got = await read(into.subarray(at))
          if (got === 0 && at === 0) return false
          if (got === 0) throw new Fault('TRUNCATED', 'the stream ended in the middle')
          at += got
        }
        return true
      },
    },
    outlet: {
      async send(given) {
        link.sent.push(Buffer.from(given))
        await take()
      },
      finish: async () => {},
    },
    duplex: true,
    peer: 'spy',
    destroy(reason = new Error('destroyed')) {
      link.destroyed = true
      wake(reason)
    },
  }
  return link
}

/** Reads until the end or a fault, in steps of `step` bytes. */
async function all(link: Link, step: number): Promise<{ bytes: Buffer; fault?: Fault }> {
  const parts: Buffer[] = []
  for (;;) {
    const into = Buffer.alloc(step)
    const got = await link.inlet.read(into).catch((error: unknown) => {
      if (!(error instanceof Fault)) throw error
      return error
    })
    if (got instanceof Fault) return { bytes: Buffer.concat(parts), fault: got }
    if (got === 0) return { bytes: Buffer.concat(parts) }
    parts.push(into.subarray(0, got))
  }
}

const lanes = fc.integer({ min: 2, max: 16 })

test('what is sent comes out in order, in both directions, whatever the sizes', async () => {
  const sizes = fc.array(fc.oneof(fc.nat(200), fc.nat(2 * CHUNK_BYTES)), { maxLength: 8 })
  const room = fc.integer({ min: 1, max: 2 ** 18 })
  await fc.assert(
    fc.asyncProperty(
      lanes,
      sizes,
      sizes,
      room,
      fc.integer({ min: 1, max: 2 ** 18 }),
      async (n, up, down, room, step) => {
        const cables = Array.from({ length: n }, (_, index) => cable({ room: room + index * 1000 }))
        const near = stripedLink(
          cables.map((each) => each.near),
          'far',
        )
        const far = stripedLink(
          cables.map((each) => each.far),
          'near',
        )
        const crosses = async (from: Link, to: Link, parts: number[], name: string): Promise<void> => {
          const given = bytesOf(
            name,
            parts.reduce((sum, part) => sum + part, 0),
          )
          const sending = async (): Promise<void> => {
            let at = 0
            for (const part of parts) {
              // The caller of `send` may use the buffer again.
              const buffer = Buffer.from(given.subarray(at, at + part))
              await from.outlet.send(buffer)
              buffer.fill(0)
              at += part
            }
            await from.outlet.finish()
          }
          const [got] = await within(Promise.all([all(to, step), sending()]))
          assert.is(got.fault, undefined)
          assert.ok(got.bytes.equals(given))
        }
        await Promise.all([crosses(near, far, up, 'up'), crosses(far, near, down, 'down')])
        near.destroy()
      },
    ),
    { numRuns: 40 },
  )
})

/** The chunks of a stream and its end, distributed to connections. */
const dealt = fc
  .record({ n: lanes, parts: fc.array(fc.tuple(fc.integer({ min: 1, max: 60 }), fc.nat(15)), { maxLength: 20 }) })
  .map(({ n, parts }) => {
    const whole = bytesOf(
      'dealt',
      parts.reduce((sum, [size]) => sum + size, 0),
    )
    const out: Buffer[][] = Array.from({ length: n }, () => [])
    let at = 0
    for (const [number, [size, lane]] of parts.entries()) {
      out[lane % n]?.push(chunk(number, whole.subarray(at, at + size)))
      at += size
    }
    for (const lane of out) lane.push(chunk(parts.length, Buffer.alloc(0)))
    return { whole, lanes: out }
  })
const step = fc.integer({ min: 1, max: 70 })

test('chunks come in order, whichever connection brings which', async () => {
  await fc.assert(
    fc.asyncProperty(dealt, step, step, async ({ whole, lanes }, stepIn, stepOut) => {
      const links = lanes.map((chunks) => spy(Buffer.concat(chunks), { step: stepIn }))
      const { bytes, fault } = await within(all(stripedLink(links, 'x'), stepOut))
      assert.is(fault, undefined)
      assert.ok(bytes.equals(whole))
    }),
    { numRuns: 1000 },
  )
})

test('a wrong chunk is a fault, what came before it is right, and all connections are closed', async () => {
  const rot = fc.record({
    how: fc.constantFrom('number', 'length', 'bit', 'twice', 'left out', 'cut', 'swapped', 'no end' as const),
    lane: fc.nat(15),
    place: fc.nat(19),
    value: fc.nat(2 ** 32 - 1),
  })
  const faults = new Map<string, number>()
  await fc.assert(
    fc.asyncProperty(dealt, rot, step, async ({ whole, lanes }, { how, lane, place, value }, stepOut) => {
      const chunks = lanes[lane % lanes.length] as Buffer[]
      const at = place % chunks.length
      const header = decodeChunk(chunks[at] as Buffer)
      const body = (chunks[at] as Buffer).subarray(CHUNK_HEADER_BYTES)
      if (how === 'number' && value !== header.number) chunks[at] = chunk(value, body)
      else if (how === 'length' && value > body.length) chunks[at] = chunk(header.number, body, value)
      else if (how === 'bit')
        (chunks[at] as Buffer).writeUInt8((chunks[at] as Buffer).readUInt8(value % 16) ^ 1, value % 16)
      else if (how === 'twice' && body.length > 0) chunks.splice(at, 0, chunks[at] as Buffer)
      else if (how === 'left out') chunks.splice(at, 1)
      else if (how === 'cut')
        chunks.splice(at, chunks.length, (chunks[at] as Buffer).subarray(0, value % (chunks[at] as Buffer).length))
      else if (how === 'swapped' && at + 2 < chunks.length)
        chunks.splice(at, 2, chunks[at + 1] as Buffer, chunks[at] as Buffer)
      else if (how === 'no end') chunks.pop()
      else return
      const links = lanes.map((each) => spy(Buffer.concat(each)))
      const { bytes, fault } = await within(all(stripedLink(links, 'x'), stepOut))
      assert.ok(fault !== undefined, how)
      assert.ok(['FORMAT', 'LIMIT', 'LINK', 'TRUNCATED'].includes(fault.code), fault.message)
      // A length above the truth swallows what follows it there, and of two chunks with one number nobody knows which
      // is true: no digest is looked at here.
      const ambiguous = how === 'number' && lanes.flat().filter((each) => decodeChunk(each).number === value).length > 1
      if (how !== 'length' && !ambiguous) assert.ok(whole.subarray(0, bytes.length).equals(bytes), how)
      assert.ok(
        links.every(({ destroyed }) => destroyed),
        how,
      )
      faults.set(how, (faults.get(how) ?? 0) + 1)
    }),
    { numRuns: 4000 },
  )
  assert.is(faults.size, 8)
  for (const [how, count] of faults) assert.ok(count > 20, `${how}: ${count}`)
})

test('a header: its bytes are pinned, every wrong bit is refused, and numbers have a limit', () => {
  // Python's struct and zlib, from docs/protocol/wire.md.
  const pinned = Buffer.from('0500000000000000' + '00000200' + 'fdd340d1', 'hex')
  const mine = Buffer.alloc(CHUNK_HEADER_BYTES)
  encodeChunk(mine, { number: 5, length: 2 ** 17 })
  assert.is(mine.toString('hex'), pinned.toString('hex'))
  assert.equal(decodeChunk(pinned), { number: 5, length: 2 ** 17 })
  for (let bit = 0; bit < 128; bit++) {
    const wrong = Buffer.from(pinned)
    wrong.writeUInt8(wrong.readUInt8(bit >> 3) ^ (1 << (bit & 7)), bit >> 3)
    assert.throws(
      () => decodeChunk(wrong),
      (error: Fault) => error.code === 'FORMAT',
      `bit ${bit}`,
    )
  }
  const limit = (number: number, length: number) => () => decodeChunk(chunk(number, Buffer.alloc(0), length))
  limit(LARGEST_IMAGE, MOST_CHUNK)()
  assert.throws(limit(LARGEST_IMAGE + 1, 1), (error: Fault) => error.code === 'LIMIT')
  assert.throws(limit(0, MOST_CHUNK + 1), (error: Fault) => error.code === 'LIMIT')
})

test('random headers give a Fault or a chunk that encodes to them', () => {
  let accepted = 0
  fc.assert(
    fc.property(fc.bigInt(0n, 2n ** 50n), fc.nat(2 ** 22), fc.boolean(), (number, length, repair) => {
      const header = Buffer.alloc(CHUNK_HEADER_BYTES)
      encodeChunk(header, { number: Number(number), length })
      if (!repair) header.writeUInt32LE(Number(number % 2n ** 32n), 12)
      try {
        assert.equal(decodeChunk(header), { number: Number(number), length })
        accepted++
      } catch (error) {
        assert.instance(error, Fault)
      }
    }),
    { numRuns: 3000 },
  )
  assert.ok(accepted > 100, `${accepted}`)
})

test('nothing but one header is read from a connection whose chunk is not next', async () => {
  const late = [1, 2, 3].map((number) =>
    spy(Buffer.concat([chunk(number, Buffer.alloc(5000, number)), chunk(number + 3, Buffer.alloc(9))]), {
      ends: false,
    }),
  )
  const missing = spy(Buffer.alloc(0), { ends: false })
  const link = stripedLink([missing, ...late], 'x')
  const reading = link.inlet.read(Buffer.alloc(100_000))
  assert.ok(await waits(reading))
  assert.equal(
    late.map(({ taken }) => taken),
    [16, 16, 16],
  )
  link.destroy(new Fault('ABORTED', 'over'))
  await rejectsFault('ABORTED', reading)
})

test('a connection that takes nothing gets one chunk, and the others all the rest', async () => {
  const stuck = spy(Buffer.alloc(0), { ends: false, take: () => new Promise(() => {}) })
  const others = [1, 2, 3].map(() => spy(Buffer.alloc(0), { ends: false }))
  const link = stripedLink([stuck, ...others], 'x')
  await within(link.outlet.send(bytesOf('much', 400 * CHUNK_BYTES)))
  assert.is(stuck.sent.length, 1)
  for (const { sent } of others) assert.ok(sent.length > 100, `${sent.length}`)
  link.destroy()
})

test('where no connection takes anything the sender waits, and holds one chunk for each', async () => {
  const links = [1, 2, 3, 4].map(() => spy(Buffer.alloc(0), { ends: false, take: () => new Promise(() => {}) }))
  const link = stripedLink(links, 'x')
  const sending = link.outlet.send(Buffer.alloc(5 * CHUNK_BYTES))
  assert.ok(await waits(sending))
  assert.equal(
    links.map(({ sent }) => sent.length),
    [1, 1, 1, 1],
  )
  link.destroy(new Fault('ABORTED', 'over'))
  await rejectsFault('ABORTED', sending)
})

test('when one connection breaks all do, and reads and writes that wait are rejected', async () => {
  const cables = [1, 2, 3, 4].map(() => cable({ room: 1000 }))
  const near = stripedLink(
    cables.map((each) => each.near),
    'far',
  )
  const sending = near.outlet.send(Buffer.alloc(20 * CHUNK_BYTES))
  const reading = near.inlet.read(Buffer.alloc(10))
  await turns()
  cables[2]?.cut()
  await rejectsFault('LINK', sending)
  await rejectsFault('LINK', reading)
  for (const { far } of cables) await rejectsFault('LINK', far.outlet.send(Buffer.alloc(1)))
  await rejectsFault('LINK', near.outlet.send(Buffer.alloc(1)))
  await rejectsFault('LINK', near.outlet.finish())
})

test('a read is rejected with what failed before the first chunk', async () => {
  const links = [1, 2].map(() => spy(Buffer.alloc(0), { ends: false }))
  const link = stripedLink(links, 'x', async (each) => {
    if (each === links[1]) throw new Fault('REFUSED', 'not here')
  })
  await rejectsFault('REFUSED', link.inlet.read(Buffer.alloc(1)))
  assert.ok(links.every(({ destroyed }) => destroyed))
})

test.run()
