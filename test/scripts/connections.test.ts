/**
 * The commands over several connections: they carry one snapshot, break together, and are refused where they do not
 * fit.
 */

import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { writeFileSync } from 'node:fs'
import net from 'node:net'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { encodeFrame, type Frame } from '../../lib/format/frame.ts'
import { encodePreamble } from '../../lib/format/preamble.ts'
import { connectEndpoint } from '../../lib/stream/endpoint.ts'
import { type FrameReader, frameReader } from '../../lib/stream/frames.ts'
import type { Link } from '../../lib/stream/link.ts'
import { stripedLink } from '../../lib/stream/striped-link.ts'
import { within } from '../expect.ts'
import { anyFrame } from '../support/any-frame.ts'
import { type Relay, startRelay } from '../support/breaking-relay.ts'
import { startCache, startProxy } from '../support/daemons.ts'
import { dumpAll, type FakeDump, fakeDump, fakeRestore } from '../support/fake-criu.ts'
import { type Running, statusIs, temporary } from '../support/run.ts'
import { pattern } from '../support/talk.ts'

const test = suite('scripts/connections')

interface Stage {
  relay: Relay
  proxy: Running
  cache: Running
  port: string
  dump: () => FakeDump
  arrived: () => Promise<void>
}

const images = { 'pages-1.img': pattern(24_000_000, 1), 'core-1.img': pattern(2000, 2), 'empty.img': Buffer.alloc(0) }

async function staged(
  connections: number,
  timeout: string,
  body: (stage: Stage) => Promise<void>,
  secret = false,
): Promise<void> {
  const { path, remove } = temporary()
  const [source, target, key] = [join(path, 'source'), join(path, 'target'), join(path, 'key')]
  writeFileSync(key, randomBytes(32), { mode: 0o600 })
  const options = ['--timeout', timeout, ...(secret ? ['--key-file', key] : [])]
  const { cache, port } = await startCache(target, options)
  const relay = await startRelay(port)
  const proxy = await startProxy(source, relay.port, [...options, '--connections', String(connections)])
  const arrived = async (): Promise<void> => {
    const criu = fakeRestore(join(target, 'streamer-serve.sock'))
    for (const [name, bytes] of Object.entries(images)) assert.ok((await criu.image(name))?.equals(bytes), name)
    criu.close()
  }
  try {
    await body({ relay, proxy, cache, port, dump: () => fakeDump(join(source, 'streamer-capture.sock')), arrived })
  } finally {
    await Promise.all([proxy.stop(), cache.stop()])
    relay.close()
    remove()
  }
}

for (const connections of [2, 16]) {
  test(`${connections} connections carry one snapshot, and the next`, () =>
    staged(connections, '20', async ({ relay, proxy, cache, dump, arrived }) => {
      for (let time = 1; time <= 2; time++) {
        await dumpAll(dump(), images)
        await proxy.says(new RegExp('handed over: [\\s\\S]*'.repeat(time)))
        assert.is(relay.links, connections * time)
        await arrived()
      }
      await statusIs(cache, /links: 0/)
    }))
}

test('one of four is cut, and another, and another: all go on over new ones, and every image arrives', () =>
  staged(4, '20', async ({ relay, proxy, dump, arrived }) => {
    const cut = { how: 'cut' } as const
    const whole = { up: Number.POSITIVE_INFINITY, ...cut }
    // The second of the first four; the last, at once; one that has only greeted; one while the cache speaks.
    relay.plan(
      ...[whole, { up: 1_500_000, ...cut }, whole, whole],
      ...[whole, whole, whole, { up: 0, ...cut }],
      ...[{ up: 70, ...cut }, whole, whole, whole],
      ...[whole, whole, { down: 120, ...cut }, whole],
    )
    await dumpAll(dump(), images)
    await proxy.says(/sent and sealed by the cache: 4 images/)
    assert.ok(relay.links >= 16, `${relay.links} connections`)
    assert.not.match(proxy.stderr(), /failed/)
    await arrived()
  }))

test('four connections with TLS, one of them cut', () =>
  staged(
    4,
    '20',
    async ({ relay, proxy, dump, arrived }) => {
      relay.plan({ how: 'cut' }, { up: 2_000_000, how: 'cut' })
      await dumpAll(dump(), images)
      await proxy.says(/sent and sealed by the cache: 4 images/)
      assert.is(relay.links, 8)
      await arrived()
    },
    true,
  ))

test('one of four falls silent: all are left for others', () =>
  staged(4, '8', async ({ relay, proxy, dump, arrived }) => {
    relay.plan({ how: 'mute' }, { up: 2_000_000, how: 'mute' })
    await dumpAll(dump(), images)
    await proxy.says(/sent and sealed by the cache: 4 images/)
    assert.is(relay.links, 8)
    await arrived()
  }))

test('a cache that stands still and never greets: the dump fails within the time-out', () =>
  staged(4, '2', async ({ relay, proxy, dump }) => {
    relay.die('mute')
    const criu = dump()
    const pipe = criu.open('pages-1.img')
    await proxy.says(/failed: .*did not come back within 2 s/)
    criu.close()
    assert.ok(pipe > 0)
  }))

test('another end that does not know of several connections says so, and the dump fails', async () => {
  const { path, remove } = temporary()
  const server = net.createServer((socket) => {
    socket.on('error', () => {})
    const refusal: Frame = { type: 'refused', code: 'REFUSED', reason: 'unknown frame type 10' }
    socket.write(Buffer.concat([encodePreamble(), encodeFrame({ type: 'hello' }), encodeFrame(refusal)]))
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as net.AddressInfo
  const proxy = await startProxy(path, String(port), ['--connections', '3'])
  const criu = fakeDump(join(path, 'streamer-capture.sock'))
  criu.open('pages-1.img')
  await proxy.says(/failed: the target refused one of several connections: unknown frame type 10/)
  criu.close()
  await proxy.stop()
  server.close()
  remove()
})

interface Joining {
  link: Link
  reader: FrameReader
}

/** A connection to the cache that says `join`. */
async function joins(port: string, token: number, index: number, count: number): Promise<Joining> {
  const link = await connectEndpoint(
    { kind: 'tcp', host: '127.0.0.1', port: Number(port) },
    5000,
    AbortSignal.timeout(5000),
  )
  const reader = frameReader(link.inlet)
  const join = encodeFrame({ type: 'join', token: Buffer.alloc(16, token), index, count })
  await link.outlet.send(Buffer.concat([encodePreamble(), join]))
  assert.is((await reader.expect(anyFrame)).type, 'hello')
  return { link, reader }
}

async function refusal({ link, reader }: Joining): Promise<string> {
  const frame = await within(reader.expect(anyFrame))
  link.destroy()
  return frame.type === 'refused' ? frame.reason : frame.type
}

test('a place that is taken, another count, a join in a join: refused, and the group goes on', () =>
  staged(2, '5', async ({ cache, port }) => {
    // Whichever is heard later is refused.
    const [one, two] = [await joins(port, 1, 0, 2), await joins(port, 1, 0, 2)]
    const heard = [one, two].map(({ reader }) => reader.expect(anyFrame))
    const refusedFirst = await within(
      Promise.race(heard.map((each, index) => each.then((frame) => ({ frame, index })))),
    )
    assert.ok(refusedFirst.frame.type === 'refused' && /does not belong/.test(refusedFirst.frame.reason))
    const [first, welcome] = refusedFirst.index === 0 ? [two, heard[1]] : [one, heard[0]]
    ;(refusedFirst.index === 0 ? one : two).link.destroy()
    assert.match(await refusal(await joins(port, 1, 1, 3)), /does not belong/)
    assert.match(await refusal(await joins(port, 1, 2, 2)), /connection 2 of 2/)
    assert.match(await refusal(await joins(port, 1, 0, 17)), /at most 16/)
    const other = await joins(port, 2, 1, 2)
    await statusIs(cache, /links: 2/)
    const second = await joins(port, 1, 1, 2)
    assert.is((await within(Promise.resolve(welcome)))?.type, 'joined')
    assert.is((await within(second.reader.expect(anyFrame))).type, 'joined')
    const both = stripedLink([first.link, second.link], 'cache')
    const inner = frameReader(both.inlet)
    assert.is((await within(inner.expect(anyFrame))).type, 'hello')
    await statusIs(cache, /links: 1, silent: 2/)
    const join = encodeFrame({ type: 'join', token: Buffer.alloc(16, 3), index: 0, count: 2 })
    await both.outlet.send(Buffer.concat([encodePreamble(), join]))
    const refused = await within(inner.expect(anyFrame))
    assert.ok(refused.type === 'refused' && /join/.test(refused.reason), JSON.stringify(refused))
    both.destroy()
    other.link.destroy()
    const chunks = await joins(port, 4, 0, 2)
    const liar = await joins(port, 4, 1, 2)
    for (const { link, reader } of [chunks, liar]) {
      assert.is((await within(reader.expect(anyFrame))).type, 'joined')
      await link.outlet.send(Buffer.alloc(64, 7))
    }
    await cache.says(/damaged chunk header/)
  }))

test('a client of a cache asks it over three connections', () =>
  staged(1, '5', async ({ port, dump, proxy }) => {
    await dumpAll(dump(), { 'name.img': Buffer.from('ferry') })
    await proxy.says(/handed over/)
    const three = await Promise.all([0, 1, 2].map((index) => joins(port, 9, index, 3)))
    for (const { reader } of three) assert.is((await within(reader.expect(anyFrame))).type, 'joined')
    const all = stripedLink(
      three.map(({ link }) => link),
      'cache',
    )
    const reader = frameReader(all.inlet)
    await all.outlet.send(Buffer.concat([encodePreamble(), encodeFrame({ type: 'get', id: undefined, timeoutMs: 0 })]))
    const types = new Set<string>()
    while (!types.has('snapshotEnd')) {
      const frame = await within(reader.expect(anyFrame))
      types.add(frame.type)
      if (frame.type === 'data') await all.inlet.fill(Buffer.alloc(frame.length))
    }
    assert.ok(types.has('data'))
    all.destroy()
  }))

test.run()
