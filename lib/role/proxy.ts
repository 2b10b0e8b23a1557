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
import { Fault } from '../fault.ts'
import type { SnapshotId } from '../format/names.ts'
import { PAGE_BYTES } from '../format/pagemap.ts'
import type { Until } from '../format/words.ts'
import type { Fd } from '../kernel/fd.ts'
import { memoryOfTree, openProcess } from '../kernel/process.ts'
import { acceptUnix, peerPid } from '../kernel/unix.ts'
import type { Report } from '../progress.ts'
import { connectEndpoint, type Endpoint } from '../stream/endpoint.ts'
import { connectMany } from '../stream/joining.ts'
import type { Link } from '../stream/link.ts'
import { SENDER_WINDOW } from '../stream/resuming-sender.ts'
import { takeRing } from '../stream/ring.ts'
import type { Tuning } from '../stream/tuning.ts'
import { type Approach, approach } from './approach.ts'
import { CAPTURE_SOCKET } from './capture.ts'
import { type Chains, openChains, type Taken } from './chains.ts'
import { type CriuCommand, criuCommand } from './criu-command.ts'
import { pay } from './debt.ts'
import { type Departure, depart } from './departure.ts'
import { freshId } from './dump.ts'
import { conclude } from './ending.ts'
import { clearGates, writeScript } from './gate.ts'
import { abandon, type Chain, lastLayer, nextLayer, sendRound } from './layers.ts'
import { type Owed, readOwed } from './owed.ts'
import { openPagePort, type PagePort } from './page-port.ts'
import { type PageServer, pageServer } from './page-server.ts'
import { openRemoteDumps, type RemoteDumps } from './remote-dumps.ts'
import type { DeliverPlace, Delivery } from './remote-proxy.ts'
import { reportSmallPipes } from './small-pipes.ts'
import { type Half, openSplits } from './split.ts'
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
  /** The port for criu --page-server; 0: the kernel chooses; none if undefined. */
  pagePort: number | undefined
  /** How dumps and their rounds go to the cache: by our wire if undefined. */
  deliver?: Delivery | undefined
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
  const over = (chain: Chain): void => track(abandonAt(chain, options), `the chain of snapshot ${chain.id}`)
  const chains = openChains(over)
  const splits = openSplits(options.pagePort !== undefined, signal)
  let port: PagePort | undefined
  let remote: RemoteDumps | undefined
  try {
    writeScript(work.path, 'post-dump')
    clearGates(work.path)
    // Another kind of cache takes no verdicts.
    const debts = options.deliver === undefined ? readOwed(work.path) : []
    for (const owed of debts) track(payCache(owed, options), `snapshot ${owed.id}`)
    signal.addEventListener('abort', () => work.remove(signal.reason as Error))
    remote = openRemoteDumps({
      directory: work.path,
      chains,
      newId: () => options.id ?? freshId(),
      sendRound: (taken, source, round) => forwardRound(taken, source, round, options, tally),
      async sendDump(criu, id, dump) {
        if (options.deliver === undefined) return send(criu, id, work.path, options, tally, dump.layer)
        await options.deliver.dump(criu, dump, placeOf(work.path, options, tally))
        return true
      },
      abandon: (chain) => abandonIfLeft(chain, options),
      track,
      report,
    })
    signal.addEventListener('abort', () => remote?.close())
    report({ event: 'listening', at: join(work.path, CAPTURE_SOCKET) })
    if (options.pagePort !== undefined) {
      const take = (socket: Fd, command: CriuCommand): void =>
        track(
          command.splits || splits.streams(command.pid)
            ? splits.pages(command.pid, socket)
            : forwardPages(socket, command, chains, work.path, options, tally),
          `the ${command.action} of ${command.tree}`,
        )
      const refuse = (fault: Fault): void => report({ event: 'failed', what: 'a connection', fault })
      port = await openPagePort(options.pagePort, take, refuse)
      report({ event: 'listening', at: `127.0.0.1:${port.port}` })
    }
    options.onStatus?.(() => report({ event: 'status', of: 'proxy', dumps: running.size, sent: tally.sent }))
    report({ event: 'ready' })
    takeRing(SENDER_WINDOW).give()
    for (;;) {
      const socket = await acceptUnix(work.listener)
      const id = options.id ?? freshId()
      const half = splits.stream(peerPid(socket))
      track(forward(socket, id, half, chains, work.path, options, tally).finally(half.end), `snapshot ${id}`)
    }
  } finally {
    port?.close()
    remote?.close()
    chains.close()
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

/** One dump by the stream. */
async function forward(
  socket: Fd,
  id: SnapshotId,
  half: Half,
  chains: Chains,
  directory: string,
  options: ProxyOptions,
  tally: Tally,
): Promise<void> {
  const approaching = await approach(socket, directory, options.signal)
  if (approaching === undefined) return
  // It may clear the kernel's marks of changed pages, at a moment that we do not see.
  const command = criuCommand(approaching.pid)
  const breakOff = (): void => chains.breakOff(command?.tree)
  breakOff()
  const splits = command?.splits === true
  // Its options may lie in a file, where we do not see them.
  if (!splits) half.refuse()
  const criu = splits ? half.join(approaching) : approaching
  if (options.deliver === undefined) return void (await send(criu, id, directory, options, tally).finally(breakOff))
  await options.deliver.dump(criu, { command }, placeOf(directory, options, tally))
}

function placeOf(gates: string, { report, signal }: ProxyOptions, tally: Tally): DeliverPlace {
  const onBytes = (bytes: number): void => {
    tally.sent += bytes
  }
  return { gates, report, signal, onBytes }
}

/** One dump, or one round before it, by the page server. */
async function forwardPages(
  socket: Fd,
  { pid, action, tree, before, directory: images }: CriuCommand,
  chains: Chains,
  directory: string,
  options: ProxyOptions,
  tally: Tally,
): Promise<void> {
  const { id = freshId() } = options
  const taken = chains.take(tree, before, () => id)
  const { chain } = taken
  const server = pageServer(socket, { hasParent: (name) => chain.pagemaps.has(name) })
  if (action === 'pre-dump') return forwardRound(taken, server, { tree, images, snapshots: [] }, options, tally)
  const criu = openProcess(pid)
  const remove = (): void => {
    server.destroy(new Fault('ABORTED', 'over'))
    criu?.close()
  }
  const ended = criu?.ended ?? Promise.reject(new Fault('CRIU', 'criu ended before its dump began'))
  ended.catch(() => {})
  const dump: Approach = {
    pid,
    bytes: undefined,
    open() {},
    images: (held) => lastLayer(server, images, { ...held, ended }),
    remove,
  }
  const sent = await send(dump, chain.id, directory, options, tally, nextLayer(chain, true))
  if (!sent) await abandonIfLeft(chain, options)
}

/** One round, whose other images criu leaves in `images`. Throws what went wrong, and then the chain is over. */
async function forwardRound(
  { chain, keep }: Taken,
  source: PageServer,
  { tree, images, snapshots }: { tree: number; images: string; snapshots: readonly string[] },
  options: ProxyOptions,
  tally: Tally,
): Promise<void> {
  const { timeoutMs, tuning, report, signal, deliver } = options
  const connect = connector(options)
  const reserve = chain.under === 0 ? memoryOfTree(tree) : 0
  const sending =
    deliver === undefined
      ? sendRound(chain, source, { connect, tuning, reserve, timeoutMs, signal })
      : deliver.round(chain, source, snapshots, placeOf('', options, tally))
  const { pages, ms } = await sending.catch(async (error: unknown) => {
    await abandonIfLeft(chain, options)
    throw error
  })
  keep(images)
  report({ event: 'round', id: chain.id, number: chain.under, pages, bytes: pages * PAGE_BYTES, ms })
}

/** It may have sealed what we do not know of. */
async function abandonIfLeft(chain: Chain, options: ProxyOptions): Promise<void> {
  await abandonAt(chain, options).catch(() => {})
}

/** Hands over what one criu dumps; whether the cache has it. What it still owes its target is paid afterwards. */
async function send(
  criu: Approach,
  id: SnapshotId,
  directory: string,
  options: ProxyOptions,
  tally: Tally,
  layer?: Departure['layer'],
): Promise<boolean> {
  const { until, tuning, timeoutMs, report, signal } = options
  const begun = performance.now()
  const onBytes = (bytes: number): void => {
    tally.sent += bytes
  }
  const onFailed = (fault: Error): void => report({ event: 'failed', what: `snapshot ${id}`, fault })
  const connect = connector(options)
  const agreement = { until, connect, tuning, layer, resumes: true, timeoutMs, signal, onBytes, onFailed }
  const end = await depart(criu, { id, gates: directory, directory, ...agreement }).finally(criu.remove)
  reportSmallPipes(report)
  if ('reason' in end) {
    if (end.owed !== undefined) await payCache(end.owed, options)
    return false
  }
  const { snapshot, spared, verdict, fate, owed } = end
  const ms = performance.now() - begun
  report({ event: 'sent', id, images: snapshot.images.length, bytes: snapshot.bytes, spared, ms, verified: true })
  if (fate === undefined) await payCache(owed, options)
  else conclude(id, { verdict, fate }, report)
  return true
}

function connector({ connections, cache, timeoutMs }: ProxyOptions): (stop: AbortSignal) => Promise<Link> {
  return (stop) => connectMany(connections, cache, timeoutMs, stop)
}

/** The cache keeps rounds until it hears that no dump follows. */
async function abandonAt(chain: Chain, { cache, deliver }: ProxyOptions): Promise<void> {
  if (deliver !== undefined) return deliver.abandon(chain)
  const soon = AbortSignal.timeout(DELIVERY_MS)
  await abandon(chain, (stop) => connectEndpoint(cache, DELIVERY_MS, stop), soon)
}

/** A signal leaves the debt on disk for the next proxy. */
async function payCache(owed: Owed, { cache, report, signal }: ProxyOptions): Promise<void> {
  const connect = (stop: AbortSignal): Promise<Link> => connectEndpoint(cache, DELIVERY_MS, stop)
  conclude(owed.id, await pay(owed, { connect, report, signal }), report)
}

const DELIVERY_MS = 5000
