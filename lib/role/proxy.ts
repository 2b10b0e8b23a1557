/**
 * The image-proxy: a daemon on the source host. Whoever runs `criu dump --stream -D DIR` there is forwarded to the cache.
 *
 * Every CRIU that connects gets a connection to the cache of its own, so that dumps do not mix and one that fails harms
 * no other. CRIU is never answered, only read from: it waits where its pipes are full. If the cache refuses or the link
 * breaks while CRIU is dumping, our ends of socket and pipes are closed, the dump fails, and the process runs on. Once
 * CRIU has written its last image it waits for nobody: then the process is gone, whatever the cache says.
 */
import { setPriority } from 'node:os'
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { Fault } from '../fault.ts'
import { hex64 } from '../format/digest.ts'
import type { SnapshotId } from '../format/names.ts'
import type { Fd } from '../kernel/fd.ts'
import { closeFd } from '../kernel/readiness.ts'
import { acceptUnix, hasSpoken } from '../kernel/unix.ts'
import type { Report } from '../progress.ts'
import { connectEndpoint, type Endpoint } from '../stream/endpoint.ts'
import { frameReader, frameWriter } from '../stream/frames.ts'
import type { Link, Outlet } from '../stream/link.ts'
import { unexpected } from '../stream/receive.ts'
import { type Snapshot, sendSnapshot } from '../stream/send.ts'
import { CAPTURE_SOCKET, capture } from './capture.ts'
import { aborted, freshId } from './dump.ts'
import { openWorkDir } from './workdir.ts'

export interface ProxyOptions {
  cache: Endpoint
  directory: string
  /** The id of every snapshot that passes; a fresh one each if undefined. */
  id: SnapshotId | undefined
  /** How long the cache may be out of reach, and how long it may take to seal. */
  timeoutMs: number
  report: Report
  signal: AbortSignal
}

/** Runs until the signal comes; throws its reason. Throws `EXISTS` or `IO` if the socket cannot be made. */
export async function proxy(options: ProxyOptions): Promise<never> {
  const { report, signal } = options
  const work = openWorkDir(options.directory, CAPTURE_SOCKET)
  hurry()
  const running = new Set<Promise<void>>()
  try {
    signal.addEventListener('abort', () => work.remove(signal.reason as Error))
    report({ event: 'listening', at: join(work.path, CAPTURE_SOCKET) })
    for (;;) {
      const socket = await acceptUnix(work.listener)
      const id = options.id ?? freshId()
      const forwarded = forward(socket, id, options)
        .catch((fault: Error) => report({ event: 'failed', what: `snapshot ${id}`, fault }))
        .finally(() => running.delete(forwarded))
      running.add(forwarded)
    }
  } finally {
    work.remove()
    await Promise.all(running)
  }
}

/**
 * CRIU waits for nobody before it kills the tasks, and by then the last pipe must be read (see pipe-reader.ts): the proxy
 * goes before other work on a busy host, where it may.
 */
function hurry(): void {
  try {
    setPriority(-10)
  } catch {}
}

async function forward(socket: Fd, id: SnapshotId, options: ProxyOptions): Promise<void> {
  if (!(await hasSpoken(socket))) return closeFd(socket)
  const source = capture(socket)
  const begun = performance.now()
  const stop = new AbortController()
  const outside = (): void => {
    stop.abort(options.signal.reason)
    void connecting.then((link) => link.destroy(options.signal.reason as Error)).catch(() => {})
  }
  options.signal.addEventListener('abort', outside)
  const connecting = connectEndpoint(options.cache, options.timeoutMs, stop.signal)
  // The cache may refuse, or go away, while CRIU has nothing to send: the verdict is awaited all along.
  const verdict = connecting.then((link) => sealed(link.inlet))
  verdict.catch(async (reason: Error) => {
    stop.abort(reason)
    await connecting.then((link) => link.destroy(reason)).catch(() => {})
  })
  try {
    const sent = await sendSnapshot(frameWriter(whenConnected(connecting)), id, source, { signal: stop.signal })
    await Promise.race([verdict.then((digest) => compare(digest, sent)), late(options), aborted(stop.signal)])
    const ms = performance.now() - begun
    options.report({ event: 'sent', id, images: sent.images.length, bytes: sent.bytes, ms, verified: true })
  } catch (error) {
    throw await reasonFor(error, verdict)
  } finally {
    options.signal.removeEventListener('abort', outside)
    stop.abort(new Fault('ABORTED', 'over'))
    await connecting.then((link) => link.destroy()).catch(() => {})
  }
}

/** CRIU is read from before the cache is there: what fits into its pipes does not wait to be read. */
function whenConnected(connecting: Promise<Link>): Outlet {
  return {
    send: async (bytes, more) => (await connecting).outlet.send(bytes, more),
    settle: async () => {},
    finish: async () => (await connecting).outlet.finish(),
  }
}

/** The digest with which the cache seals. Throws what it refuses with, or `LINK` if it goes away. */
async function sealed(inlet: Parameters<typeof frameReader>[0]): Promise<bigint> {
  const reader = frameReader(inlet)
  const first = await reader.expect()
  if (first.type !== 'hello') throw unexpected(first)
  for (;;) {
    const frame = await reader.next()
    if (frame === undefined) throw new Fault('LINK', 'the cache closed the link before it sealed the snapshot')
    if (frame.type === 'sealed') return frame.digest
    if (frame.type === 'refused') throw new Fault(frame.code, `the cache refused: ${frame.reason}`)
    if (frame.type !== 'ack') throw unexpected(frame)
  }
}

/** How long the cache may take to answer a dump that failed. */
const ANSWER_MS = 5000

/**
 * Waits for the cache's last word, for two ends: closing over its unread acks would reset the link before it has read
 * that the dump failed; and where it closed the link on us, its refusal says more than our broken write.
 */
async function reasonFor(error: unknown, verdict: Promise<unknown>): Promise<unknown> {
  const word = await Promise.race([
    verdict.catch((reason: unknown) => reason),
    setTimeout(ANSWER_MS, undefined, { ref: false }),
  ])
  const refused = word instanceof Fault && (word.code !== 'LINK' || word.hint !== undefined)
  return refused && error instanceof Fault && error.code === 'LINK' ? word : error
}

function compare(digest: bigint, sent: Snapshot): void {
  if (digest === sent.digest) return
  throw new Fault('DIGEST', `the cache sealed ${hex64(digest)}, sent was ${hex64(sent.digest)}`)
}

async function late({ timeoutMs }: ProxyOptions): Promise<never> {
  await setTimeout(timeoutMs, undefined, { ref: false })
  throw new Fault('TIMEOUT', `the cache did not seal the snapshot within ${timeoutMs / 1000} s`)
}
