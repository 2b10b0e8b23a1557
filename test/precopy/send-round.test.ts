import { once } from 'node:events'
import { utimesSync, writeFileSync } from 'node:fs'
import net from 'node:net'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { askCache } from '../../lib/cache/admin.ts'
import { type PageServer, SocketPageServer } from '../../lib/criu/page-server.ts'
import { SERVE_SOCKET } from '../../lib/criu/serve.ts'
import { Fault } from '../../lib/fault.ts'
import { snapshotId } from '../../lib/format/names.ts'
import { layouts, psCommand } from '../../lib/format/page-server.ts'
import { PAGE_BYTES, pageFlag } from '../../lib/format/pagemap.ts'
import type { Fd } from '../../lib/kernel/fd.ts'
import { closeFd } from '../../lib/kernel/readiness.ts'
import { readSome, writeAll } from '../../lib/kernel/transfer.ts'
import { socketPair } from '../../lib/kernel/unix.ts'
import { abandonChain, lastLayer, newChain, type PreCopyChain, sendRound } from '../../lib/precopy/send-round.ts'
import { EXTENT } from '../../lib/store/pool.ts'
import { connectEndpoint } from '../../lib/stream/endpoint.ts'
import { rejectsFault, within } from '../expect.ts'
import { startCache } from '../support/daemons.ts'
import { fakeRestore } from '../support/fake-criu.ts'
import { encodeRecord } from '../support/page-server.ts'
import { inventory, part, putInto, sendPart } from '../support/rounds.ts'
import { run, start, temporary } from '../support/run.ts'

const test = suite('precopy/send-round')
const PAGES = 3

/** A criu that says all that it has to say, and waits for the answer to CLOSE: `answer` resolves with its bytes. */
async function criu(): Promise<{ server: PageServer; answer: Promise<number> }> {
  const [ours, theirs] = socketPair()
  const record = (command: number, more = {}): Buffer => encodeRecord(layouts.new, { command, type: 1, id: 7, ...more })
  const server = new SocketPageServer(ours, () => false)
  const speak = async (fd: Fd): Promise<number> => {
    try {
      await writeAll(fd, record(psCommand.OPEN2))
      await readSome(fd, Buffer.alloc(1))
      await writeAll(fd, record(psCommand.ADD_F, { flags: pageFlag.present, pages: PAGES, vaddr: 0x10000 }))
      await writeAll(fd, Buffer.alloc(PAGES * PAGE_BYTES, 1))
      await writeAll(fd, encodeRecord(layouts.new, { command: psCommand.CLOSE }))
      return await readSome(fd, Buffer.alloc(4))
    } catch {
      return 0
    } finally {
      closeFd(fd)
    }
  }
  return { server, answer: speak(theirs) }
}

/** Takes a source to its end. */
async function drain(source: ReturnType<typeof lastLayer>): Promise<string[]> {
  const names: string[] = []
  for await (const { name, body } of source.images) {
    if (body.kind === 'pieces') for await (const _ of body.pieces);
    names.push(name)
  }
  return names
}

const never = new Promise<never>(() => {})

test('a signal that came before is heeded: no round begins', async () => {
  const listener = net.createServer(() => {}).listen(0, '127.0.0.1')
  await once(listener, 'listening')
  const { port } = listener.address() as net.AddressInfo
  const { server, answer } = await criu()
  const signal = AbortSignal.abort(new Fault('ABORTED', 'stopped'))
  const connect = (stop: AbortSignal) => connectEndpoint({ kind: 'tcp', host: '127.0.0.1', port }, 60_000, stop)
  const options = { connect, tuning: undefined, reserve: 0, timeoutMs: 60_000, signal }
  await rejectsFault('ABORTED', sendRound(newChain(snapshotId('s')), server, options))
  assert.is(await answer, 0, 'criu is left')
  listener.close()
})

test('criu is let go on when the target has its pages, and not before', async () => {
  const { path, remove } = temporary()
  writeFileSync(join(path, 'inventory.img'), 'x')
  const { server, answer } = await criu()
  let asked = 0
  const source = lastLayer(server, path, {
    complete: Promise.resolve(),
    ended: never,
    taken: async (images) => {
      asked = images
    },
  })
  assert.equal(await drain(source), ['pages-65537.img', 'pagemap-7.img', 'inventory.img'])
  assert.is(asked, 2)
  assert.is(await answer, 4)
  remove()
})

test('the target does not take them: criu gets no answer, and fails', async () => {
  const { path, remove } = temporary()
  const { server, answer } = await criu()
  const gone = new Fault('TIMEOUT', 'the target did not take the images')
  const source = lastLayer(server, path, { complete: never, ended: never, taken: () => Promise.reject(gone) })
  await rejectsFault('TIMEOUT', drain(source))
  source.destroy(gone)
  assert.is(await answer, 0)
  remove()
})

test('the images of an earlier dump are not those of this one', async () => {
  const { path, remove } = temporary()
  const inventory = join(path, 'inventory.img')
  writeFileSync(inventory, 'x')
  utimesSync(inventory, new Date(), new Date(Date.now() - 1000))
  const { server } = await criu()
  const fault = await rejectsFault('FAILED_DUMP', drain(lastLayer(server, path, { ended: Promise.resolve() })))
  assert.match(fault.message, /inventory\.img is of an earlier one/)
  remove()
})

test('a round at the cache is dropped when no other follows, also one more than its owner knows of', async () => {
  const { path, remove } = temporary()
  const cache = start('cache', ['--port', '0', '-D', join(path, 'target')])
  const [, port] = await cache.says(/listening on 127\.0\.0\.1:(\d+)/)
  const target = { kind: 'tcp', host: '127.0.0.1', port: Number(port), credentials: undefined } as const
  const { signal } = new AbortController()
  const connect = (stop: AbortSignal) => connectEndpoint(target, 5000, stop)
  const held = async (): Promise<string> => (await run('cache', ['-D', join(path, 'target'), '--ls'])).stdout.toString()
  const round = async (chain: PreCopyChain): Promise<void> => {
    const { server, answer } = await criu()
    const sent = await sendRound(chain, server, { connect, tuning: undefined, reserve: 0, timeoutMs: 5000, signal })
    assert.is(sent.pages, PAGES)
    assert.is(await answer, 4)
  }
  const chain = newChain(snapshotId('app'))
  await round(chain)
  await round(chain)
  assert.is(chain.under, 2)
  assert.match(await held(), /app.*chain of 2 rounds/)
  await abandonChain({ ...chain, under: 1 }, connect, signal)
  assert.not.match(await held(), /app/)
  await round(newChain(snapshotId('app')))
  await cache.stop()
  remove()
})

test('a round by the page server leaves out what the cache has, and has it when that chain is gone', async () => {
  const { path, remove } = temporary()
  const target = join(path, 'target')
  const { cache, port } = await startCache(target, ['--dedup'])
  const to = { kind: 'tcp', host: '127.0.0.1', port: Number(port), credentials: undefined } as const
  const { signal } = new AbortController()
  const connect = (stop: AbortSignal) => connectEndpoint(to, 5000, stop)
  const tuning = { unchecked: false, dedup: () => {} }
  const round = async (word: string): Promise<PreCopyChain> => {
    const [chain, { server, answer }] = [newChain(snapshotId(word)), await criu()]
    await sendRound(chain, server, { connect, tuning, reserve: 0, timeoutMs: 5000, signal })
    assert.is(await answer, 4)
    return chain
  }
  const donor = await round('donor')
  const { id, token } = await round('app')
  await abandonChain(donor, connect, signal)
  const listed = await askCache(target, { ls: true })
  assert.equal(
    typeof listed === 'object' &&
      listed.holdings.map(({ id, state, bytes, shared }) => [id, state, bytes, shared]).slice(0, 2),
    [
      ['donor', 'leaving', PAGE_BYTES, 0],
      ['app', 'chain', EXTENT, PAGES * PAGE_BYTES],
    ],
  )
  const last = putInto(join(path, 'last'), {
    ...part('', [[0x10, PAGES, pageFlag.parent]]),
    'inventory.img': inventory,
  })
  await sendPart(port, id, last, { under: 1, last: true, token })
  const restore = fakeRestore(join(target, SERVE_SOCKET))
  assert.ok((await restore.image('pages-1.img'))?.equals(Buffer.alloc(PAGES * PAGE_BYTES, 1)))
  restore.close()
  await cache.stop()
  remove()
})

test('a cache that says nothing: the round fails in time, and criu with it', async () => {
  const mute = net.createServer((socket) => void socket.on('error', () => {})).listen(0, '127.0.0.1')
  await once(mute, 'listening')
  const { port } = mute.address() as net.AddressInfo
  const silent = (stop: AbortSignal) =>
    connectEndpoint({ kind: 'tcp', host: '127.0.0.1', port, credentials: undefined }, 5000, stop)
  for (const tuning of [undefined, { unchecked: false, dedup: () => {} }]) {
    const { server, answer } = await criu()
    const options = { connect: silent, tuning, reserve: 0, timeoutMs: 300 }
    const chain = newChain(snapshotId('app'))
    await rejectsFault('TIMEOUT', sendRound(chain, server, { ...options, signal: new AbortController().signal }))
    assert.is(await answer, 0)
    assert.is(chain.under, 0)
  }
  mute.close()
})

test('a criu that falls silent at the page server loses its round, before and in the middle of its pages', async () => {
  // A cache that reads and does not answer.
  const target = net.createServer((socket) => socket.on('error', () => {}).resume()).listen(0, '127.0.0.1')
  await once(target, 'listening')
  const { port } = target.address() as net.AddressInfo
  const where = { kind: 'tcp', host: '127.0.0.1', port, credentials: undefined } as const
  const connect = (stop: AbortSignal) => connectEndpoint(where, 1000, stop)
  for (const begun of [false, true]) {
    const [ours, theirs] = socketPair()
    const record = encodeRecord(layouts.new, { command: psCommand.OPEN2, type: 1, id: 7 })
    if (begun) await writeAll(theirs, record, { socket: true })
    const server = new SocketPageServer(ours, () => false)
    const signal = new AbortController().signal
    const options = { connect, tuning: undefined, reserve: 0, timeoutMs: 300, signal }
    const { message } = await rejectsFault('TIMEOUT', sendRound(newChain(snapshotId('silent')), server, options))
    assert.is(message, 'criu sent nothing for 0.3 s')
    // The answer to what it has sent, and then the end.
    while ((await within(readSome(theirs, Buffer.alloc(64)).catch(() => 0))) > 0);
    closeFd(theirs)
  }
  target.close()
})

test.run()
