/**
 * The image-proxy: a daemon on the source host. Whoever runs `criu dump --stream -D DIR` there is forwarded to the cache.
 *
 * Every CRIU that connects gets a connection to the cache of its own, so that dumps do not mix and one that fails harms
 * no other. CRIU is never answered, only read from: it waits where its pipes are full, and at post-dump where it has our
 * action script. One without that script waits for nobody once its last image is written: then the process is gone, whatever
 * the cache says.
 */
import { rmSync } from 'node:fs'
import { setPriority } from 'node:os'
import { join } from 'node:path'
import type { SnapshotId } from '../format/names.ts'
import type { Until } from '../format/words.ts'
import type { Fd } from '../kernel/fd.ts'
import { acceptUnix } from '../kernel/unix.ts'
import type { Report } from '../progress.ts'
import { connectEndpoint, type Endpoint } from '../stream/endpoint.ts'
import { connectMany } from '../stream/joining.ts'
import type { Link } from '../stream/link.ts'
import { SENDER_WINDOW } from '../stream/resuming-sender.ts'
import { takeRing } from '../stream/ring.ts'
import type { Tuning } from '../stream/tuning.ts'
import { approach } from './approach.ts'
import { CAPTURE_SOCKET } from './capture.ts'
import { pay } from './debt.ts'
import { depart } from './departure.ts'
import { freshId } from './dump.ts'
import { conclude } from './ending.ts'
import { clearGates, writeScript } from './gate.ts'
import { type Owed, readOwed } from './owed.ts'
import { reportSmallPipes } from './small-pipes.ts'
import { openWorkDir } from './workdir.ts'

export interface ProxyOptions {
  cache: Endpoint
  /** How many connections carry a snapshot. */
  connections: number
  directory: string
  /** The id of every snapshot that passes; a fresh one each if undefined. */
  id: SnapshotId | undefined
  /** What the cache must have before CRIU may kill the tasks. */
  until: Until
  tuning?: Tuning
  /** How long the cache may be out of reach, and how long it may take to do what `until` says. */
  timeoutMs: number
  report: Report
  signal: AbortSignal
  onStatus?: (listener: () => void) => void
}

/** Runs until the signal comes; throws its reason. Throws `EXISTS` or `IO` if the socket cannot be made. */
export async function proxy(options: ProxyOptions): Promise<never> {
  const { report, signal } = options
  const work = openWorkDir(options.directory, CAPTURE_SOCKET)
  hurry()
  const running = new Set<Promise<void>>()
  const track = (task: Promise<void>, what: string): void => {
    const tracked = task
      .catch((fault: Error) => void (signal.aborted || report({ event: 'failed', what, fault })))
      .finally(() => running.delete(tracked))
    running.add(tracked)
  }
  const tally = { sent: 0 }
  try {
    writeScript(work.path, 'post-dump')
    clearGates(work.path)
    for (const owed of readOwed(work.path)) track(payCache(owed, options), `snapshot ${owed.id}`)
    signal.addEventListener('abort', () => work.remove(signal.reason as Error))
    report({ event: 'listening', at: join(work.path, CAPTURE_SOCKET) })
    options.onStatus?.(() => report({ event: 'status', of: 'proxy', dumps: running.size, sent: tally.sent }))
    report({ event: 'ready' })
    takeRing(SENDER_WINDOW).give()
    for (;;) {
      const socket = await acceptUnix(work.listener)
      const id = options.id ?? freshId()
      track(forward(socket, id, work.path, options, tally), `snapshot ${id}`)
    }
  } finally {
    work.remove()
    await Promise.all(running)
    clearGates(work.path)
    rmSync(join(work.path, 'post-dump'), { force: true })
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

/** Bytes of images to the cache since the proxy began. */
interface Tally {
  sent: number
}

/** One dump. What it still owes its target is paid afterwards. */
async function forward(
  socket: Fd,
  id: SnapshotId,
  directory: string,
  options: ProxyOptions,
  tally: Tally,
): Promise<void> {
  const { cache, connections, until, tuning, timeoutMs, report, signal } = options
  const criu = await approach(socket, directory, signal)
  if (criu === undefined) return
  const begun = performance.now()
  const connect = (stop: AbortSignal): Promise<Link> => connectMany(connections, cache, timeoutMs, stop)
  const onBytes = (bytes: number): void => {
    tally.sent += bytes
  }
  const onFailed = (fault: Error): void => report({ event: 'failed', what: `snapshot ${id}`, fault })
  const agreement = { until, connect, tuning, resumes: true, timeoutMs, signal, onBytes, onFailed }
  const end = await depart(criu, { id, gates: directory, directory, ...agreement }).finally(criu.remove)
  reportSmallPipes(report)
  if ('reason' in end) {
    if (end.owed !== undefined) await payCache(end.owed, options)
    return
  }
  const { snapshot, verdict, fate, owed } = end
  const ms = performance.now() - begun
  report({ event: 'sent', id, images: snapshot.images.length, bytes: snapshot.bytes, ms, verified: true })
  if (fate === undefined) await payCache(owed, options)
  else conclude(id, { verdict, fate }, report)
}

/** A signal leaves the debt on disk for the next proxy. */
async function payCache(owed: Owed, { cache, report, signal }: ProxyOptions): Promise<void> {
  const connect = (stop: AbortSignal): Promise<Link> => connectEndpoint(cache, DELIVERY_MS, stop)
  conclude(owed.id, await pay(owed, { connect, report, signal }), report)
}

const DELIVERY_MS = 5000
