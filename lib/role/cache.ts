/**
 * The image-cache: a daemon on the target host. It takes snapshots from proxies, keeps them in memory, and hands them
 * to `criu restore --stream -D DIR` and to restore-from-socket, whichever asks and as often as it asks.
 *
 * It speaks first (`hello`), so that a client knows a cache from a plain stream; then the client either sends a
 * snapshot or asks for one (`get`). A snapshot can be had only when it is sealed: complete, and every digest seen to hold. Who
 * asks earlier waits. A snapshot stays until the cache ends: a restore that fails can be tried again.
 *
 * Refused: serving an image while it still arrives. CRIU's order of restoring is nearly the reverse of its order of dumping, so
 * there is little to gain, and a process could run from a dump that then fails.
 */
import net from 'node:net'
import { join } from 'node:path'
import type { Credentials } from '../credentials.ts'
import { Fault } from '../fault.ts'
import { hex64 } from '../format/digest.ts'
import type { ImageName, SnapshotId } from '../format/names.ts'
import type { RefusalCode } from '../format/wire.ts'
import type { Fd } from '../kernel/fd.ts'
import { acceptUnix } from '../kernel/unix.ts'
import type { Report } from '../progress.ts'
import type { StoredImage } from '../store/memory.ts'
import { openPool } from '../store/pool.ts'
import { openShelf, type Sealed, type Shelf } from '../store/shelf.ts'
import { openDoor, peerOf } from '../stream/endpoint.ts'
import { type FrameReader, type FrameWriter, frameReader, frameWriter } from '../stream/frames.ts'
import type { ImageSource, OpenImage } from '../stream/image.ts'
import type { Link } from '../stream/link.ts'
import { receiveSnapshot, unexpected } from '../stream/receive.ts'
import { sendSnapshot } from '../stream/send.ts'
import { SERVE_SOCKET, serve } from './serve.ts'
import { openWorkDir } from './workdir.ts'

export interface CacheOptions {
  host: string
  /** 0: the kernel chooses; reported. */
  port: number
  /** What a client must prove; plain TCP if undefined. */
  credentials: Credentials | undefined
  directory: string
  /** The snapshot that `criu restore` gets; the newest sealed one if undefined. */
  id: SnapshotId | undefined
  /** Most bytes of memory for images. */
  maxMemory: number
  /** How long a restore may wait for its snapshot. */
  timeoutMs: number
  report: Report
  signal: AbortSignal
}

/** Runs until the signal comes; throws its reason. Throws `EXISTS`, `IO` or `LINK` if it cannot listen. */
export async function cache(options: CacheOptions): Promise<never> {
  const { report, signal } = options
  const shelf = openShelf(openPool(options.maxMemory))
  const work = openWorkDir(options.directory, SERVE_SOCKET)
  const links = new Set<Link>()
  const server = net.createServer({
    pauseOnConnect: true,
    allowHalfOpen: true,
    noDelay: true,
    keepAlive: true,
    keepAliveInitialDelay: 10_000,
  })
  server.maxConnections = MOST_LINKS
  const admit = openDoor(options.credentials)
  const welcome = (link: Link): void => {
    links.add(link)
    void answer(link, shelf, options).finally(() => links.delete(link))
  }
  server.on('connection', (socket) => {
    const what = peerOf(socket)
    admit(socket, what).then(welcome, (fault: Error) => report({ event: 'failed', what, fault }))
  })
  try {
    const port = await listen(server, options)
    report({ event: 'listening', at: `${options.host}:${port}` })
    report({ event: 'listening', at: join(work.path, SERVE_SOCKET) })
    signal.addEventListener('abort', () => work.remove(signal.reason as Error))
    for (;;) {
      const socket = await acceptUnix(work.listener)
      void serveCriu(socket, shelf, options)
    }
  } finally {
    server.close()
    work.remove()
    for (const link of links) link.destroy(signal.reason as Error)
  }
}

function listen(server: net.Server, { host, port }: CacheOptions): Promise<number> {
  return new Promise((resolve, reject) => {
    server.once('error', (cause: NodeJS.ErrnoException) => {
      const hint = cause.code === 'EADDRINUSE' ? 'another program listens there: choose another --port' : undefined
      reject(new Fault('LINK', `cannot listen on ${host}:${port} (${cause.code})`, { cause, ...(hint && { hint }) }))
    })
    server.listen({ host, port }, () => resolve((server.address() as net.AddressInfo).port))
  })
}

/** Links at a time; more are closed at once. */
const MOST_LINKS = 256
/** Bytes of payload in the first frame: a name. */
const LONGEST_FIRST = 1024
/** A client that has connected has something to say. */
const FIRST_FRAME_MS = 30_000

async function answer(link: Link, shelf: Shelf, options: CacheOptions): Promise<void> {
  const writer = frameWriter(link.outlet)
  const reader = frameReader(link.inlet)
  let what = link.peer
  try {
    await writer.send({ type: 'hello' })
    const silent = setTimeout(() => link.destroy(new Fault('TIMEOUT', 'the client said nothing')), FIRST_FRAME_MS)
    const frame = await reader.next(LONGEST_FIRST).finally(() => clearTimeout(silent))
    if (frame === undefined) return
    if (frame.type === 'snapshot') {
      what = `snapshot ${frame.id}`
      await take(frame.id, reader, writer, shelf, options)
    } else if (frame.type === 'get') await give(frame, reader, writer, shelf, options)
    else throw unexpected(frame)
  } catch (error) {
    if (!(error instanceof Fault)) throw error
    options.report({ event: 'failed', what, fault: error })
    await refuse(link, writer, error).catch(() => {})
  } finally {
    link.destroy()
  }
}

const LINGER_MS = 5000

/**
 * Tells the peer why, and takes what it has already sent: closing over unread bytes makes TCP reset the link, and the
 * peer would learn of the reset before it reads the reason.
 */
async function refuse(link: Link, writer: FrameWriter, fault: Fault): Promise<void> {
  const timer = setTimeout(() => link.destroy(fault), LINGER_MS)
  try {
    await writer.send({ type: 'refused', code: refusalOf(fault), reason: fault.message })
    await link.outlet.finish()
    const scratch = Buffer.allocUnsafe(64 * 2 ** 10)
    while (await link.inlet.fill(scratch));
  } finally {
    clearTimeout(timer)
  }
}

const passedOn: readonly string[] = ['FAILED_DUMP', 'EXISTS', 'MISSING', 'MEMORY', 'TIMEOUT', 'DIGEST', 'ABORTED']

function refusalOf(fault: Fault): RefusalCode {
  return passedOn.includes(fault.code) ? (fault.code as RefusalCode) : 'REFUSED'
}

async function take(
  id: SnapshotId,
  reader: FrameReader,
  writer: FrameWriter,
  shelf: Shelf,
  { report }: CacheOptions,
): Promise<void> {
  const begun = performance.now()
  const arriving = shelf.receive(id)
  try {
    const ack = (channel: number, offset: number): Promise<void> => writer.send({ type: 'ack', channel, offset })
    const { images, bytes, digest } = await receiveSnapshot(reader, arriving.sink, ack)
    arriving.seal()
    const ms = performance.now() - begun
    report({ event: 'sealed', id, images: images.length, bytes, ms, digest: hex64(digest) })
    await writer.send({ type: 'sealed', digest })
  } finally {
    arriving.drop()
  }
}

async function give(
  { id, timeoutMs }: { id: SnapshotId | undefined; timeoutMs: number },
  reader: FrameReader,
  writer: FrameWriter,
  shelf: Shelf,
  { report, signal }: CacheOptions,
): Promise<void> {
  const gone = reader.next()
  gone.catch(() => {})
  const left = new AbortController()
  const leave = (): void => left.abort(new Fault('LINK', 'the client left before its snapshot was here'))
  gone.then(leave, leave)
  const snapshot = await shelf.find(id, timeoutMs, left.signal)
  const begun = performance.now()
  const sent = await sendSnapshot(writer, snapshot.id, storedSource(snapshot.images), { signal })
  const reply = await gone
  if (reply?.type !== 'sealed' || reply.digest !== sent.digest) {
    throw new Fault('LINK', 'the client did not confirm the snapshot')
  }
  const ms = performance.now() - begun
  report({ event: 'served', id: snapshot.id, images: sent.images.length, bytes: sent.bytes, ms })
}

async function serveCriu(socket: Fd, shelf: Shelf, { id, timeoutMs, report }: CacheOptions): Promise<void> {
  let found: Sealed | undefined
  let begun = performance.now()
  try {
    const served = await serve(socket, async () => {
      if (found !== undefined) return found.images
      if (!shelf.has(id)) report({ event: 'waiting', what: id ?? 'the newest snapshot' })
      found = await shelf.find(id, timeoutMs)
      begun = performance.now()
      return found.images
    })
    const ms = performance.now() - begun
    if (found !== undefined) {
      report({ event: 'served', id: found.id, images: served.images.length, bytes: served.bytes, ms })
    }
  } catch (error) {
    if (!(error instanceof Fault)) throw error
    report({ event: 'failed', what: found === undefined ? 'a restore' : `the restore of ${found.id}`, fault: error })
  }
}

/** Stored images as a source, so that a snapshot can be sent on. */
function storedSource(images: ReadonlyMap<ImageName, StoredImage>): ImageSource {
  return {
    images: (async function* (): AsyncGenerator<OpenImage> {
      for (const { name, pieces } of images.values()) {
        yield { name, body: { kind: 'pieces', pieces: pieces.map((piece) => piece.window) } }
      }
    })(),
    destroy() {},
  }
}
