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
import { openFailureLog } from '../cache/failure-log.ts'
import { openIdleTimer } from '../cache/idle.ts'
import { clearGates, writeScript } from '../criu/action-script.ts'
import { CAPTURE_SOCKET } from '../criu/capture.ts'
import { type CriuCommand, incrementalFault, readCriuCommand } from '../criu/command-line.ts'
import { acceptDump, type IncomingDump } from '../criu/incoming-dump.ts'
import { type PageServer, pageServer } from '../criu/page-server.ts'
import { openPagePort, type PagePort } from '../criu/page-server-port.ts'
import { type DumpHalf, openSplitDumps } from '../criu/split-dump.ts'
import { openWorkDir } from '../criu/work-directory.ts'
import { RemoteDumps } from '../criu-remote/dumps.ts'
import { Fault } from '../fault.ts'
import type { SnapshotId } from '../format/names.ts'
import { PAGE_BYTES } from '../format/pagemap.ts'
import type { Fd } from '../kernel/fd.ts'
import { giveBack } from '../kernel/mapped-memory.ts'
import { openProcess } from '../kernel/process.ts'
import { closeFd } from '../kernel/readiness.ts'
import { acceptUnix, peerPid } from '../kernel/unix.ts'
import { openProxyChains, type ProxyChains, type TakenChain } from '../precopy/chains.ts'
import type { Delivery, DeliveryPlace, RoundToDeliver } from '../precopy/delivery.ts'
import { lastLayer, nextLayer } from '../precopy/send-round.ts'
import type { Report } from '../progress.ts'
import { freshId } from '../store/fresh-id.ts'
import { takeReplayMemory } from '../stream/replay-buffer.ts'
import { SENDER_WINDOW } from '../stream/resuming-sender.ts'

export interface ProxyOptions {
  delivery: Delivery
  directory: string
  /** The id of every snapshot that passes; a fresh one each if undefined. */
  id: SnapshotId | undefined
  /** The port for criu --page-server; 0: the kernel chooses; none if undefined. */
  pagePort: number | undefined
  report: Report
  signal: AbortSignal
  onStatus?: (listener: () => void) => void
}

/** Runs until the signal comes; throws its reason. Throws `EXISTS` or `IO` if the socket cannot be made. */
export async function runProxy(options: ProxyOptions): Promise<never> {
  const { delivery, report, signal } = options
  // A gate that an earlier proxy left open must not be that of a criu which has its number now.
  const work = openWorkDir(options.directory, CAPTURE_SOCKET, (directory) => {
    clearGates(directory)
    writeScript(directory, 'post-dump')
  })
  hurry()
  const running = new Set<Promise<void>>()
  const quiet = openIdleTimer(giveBack)
  const track = (task: Promise<void>, what: string): void => {
    quiet.came()
    const tracked = task
      .catch((fault: Error) => void (signal.aborted || report({ event: 'failed', what, fault })))
      .finally(() => {
        running.delete(tracked)
        quiet.left()
      })
    running.add(tracked)
  }
  const newId = (): SnapshotId => options.id ?? freshId()
  /** Bytes of images to the cache since the proxy began. */
  let sent = 0
  const onBytes = (bytes: number): void => {
    sent += bytes
  }
  const place: DeliveryPlace = { directory: work.path, report, signal, onBytes }
  const chains = openProxyChains((chain) => track(delivery.abandon(chain), `the chain of snapshot ${chain.id}`))
  const splits = openSplitDumps(options.pagePort !== undefined, signal)
  const takePages = (socket: Fd, command: CriuCommand): Promise<void> =>
    command.splits || splits.streams(command.pid)
      ? splits.pages(command.pid, socket)
      : forwardPages(socket, command, () => chains.take(command.tree, command.before, newId), delivery, place)
  /** Those who are no criu, at the port to which anybody can connect. */
  const strangers = openFailureLog(report)
  let port: PagePort | undefined
  let remote: RemoteDumps | undefined
  try {
    for (const { id, paid } of delivery.debts(place)) track(paid, `snapshot ${id}`)
    signal.addEventListener('abort', () => work.remove(signal.reason as Error))
    remote = new RemoteDumps({
      directory: work.path,
      chains,
      newId,
      timeoutMs: delivery.timeoutMs,
      sendRound: (taken, source, round) => forwardRound(taken, source, round, delivery, place),
      sendDump: (criu, dump) => delivery.dump(criu, dump, place),
      abandon: (chain) => delivery.abandon(chain).catch(() => {}),
      track,
      report,
    })
    signal.addEventListener('abort', () => remote?.close())
    report({ event: 'listening', at: join(work.path, CAPTURE_SOCKET) })
    if (options.pagePort !== undefined) {
      const take = (socket: Fd, command: CriuCommand): void =>
        track(takePages(socket, command), `the ${command.action} of ${command.tree}`)
      const refuse = (fault: Fault): void => strangers.tell('the page server port', 'a connection', fault)
      port = await openPagePort(options.pagePort, take, refuse)
      report({ event: 'listening', at: `127.0.0.1:${port.port}` })
    }
    options.onStatus?.(() => report({ event: 'status', of: 'proxy', dumps: running.size, sent }))
    report({ event: 'ready' })
    takeReplayMemory(SENDER_WINDOW).give()
    for (;;) {
      const socket = await acceptUnix(work.listener)
      const id = newId()
      const half = splits.stream(peerPid(socket))
      track(forward(socket, id, half, chains, delivery, place).finally(half.end), `snapshot ${id}`)
    }
  } finally {
    port?.close()
    strangers.close()
    remote?.close()
    chains.close()
    work.remove()
    // What ends now may still have something to tell the cache.
    while (running.size > 0) await Promise.all(running)
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

/** One dump by the stream. */
async function forward(
  socket: Fd,
  id: SnapshotId,
  half: DumpHalf,
  chains: ProxyChains,
  delivery: Delivery,
  place: DeliveryPlace,
): Promise<void> {
  const approaching = await acceptDump(socket, place.directory, delivery.timeoutMs, place.signal)
  if (approaching === undefined) return
  // It may clear the kernel's marks of changed pages, at a moment that we do not see.
  const command = readCriuCommand(approaching.pid)
  const breakOff = (): void => chains.breakOff(command?.tree)
  breakOff()
  const incremental = incrementalFault(command)
  if (incremental !== undefined) {
    approaching.images().destroy(incremental)
    approaching.remove()
    throw incremental
  }
  const splits = command?.splits === true
  // Its options may lie in a file, where we do not see them.
  if (!splits) half.refuse()
  const criu = splits ? half.join(approaching) : approaching
  await delivery.dump(criu, { id, command }, place).finally(breakOff)
}

/** One dump, or one round before it, by the page server. */
async function forwardPages(
  socket: Fd,
  command: CriuCommand,
  take: () => TakenChain,
  delivery: Delivery,
  place: DeliveryPlace,
): Promise<void> {
  const { pid, action, tree, directory: images } = command
  let taken: TakenChain
  try {
    taken = take()
  } catch (error) {
    closeFd(socket)
    throw error
  }
  const { chain } = taken
  const server = pageServer(socket, { hasParent: (name) => chain.pagemaps.has(name) })
  if (action === 'pre-dump') return forwardRound(taken, server, { tree, images, snapshots: [] }, delivery, place)
  const criu = openProcess(pid)
  const remove = (): void => {
    server.destroy(new Fault('ABORTED', 'over'))
    criu?.close()
  }
  const ended = criu?.ended ?? Promise.reject(new Fault('CRIU', 'criu ended before its dump began'))
  ended.catch(() => {})
  const dump: IncomingDump = {
    pid,
    bytes: undefined,
    open() {},
    images: (held) => lastLayer(server, images, { ...held, ended }),
    remove,
  }
  const cargo = { id: chain.id, command, chain, layer: nextLayer(chain, true) }
  const sent = await delivery.dump(dump, cargo, place).finally(taken.end)
  if (!sent) await delivery.abandon(chain).catch(() => {})
}

/** One round, whose other images criu leaves in `images`. Throws what went wrong, and then the chain is over. */
async function forwardRound(
  { chain, keep, end }: TakenChain,
  source: PageServer,
  { images, ...round }: RoundToDeliver & { images: string },
  delivery: Delivery,
  place: DeliveryPlace,
): Promise<void> {
  const { pages, ms } = await delivery.round(chain, source, round, place).catch(async (error: unknown) => {
    end()
    // The cache may have sealed what we do not know of.
    await delivery.abandon(chain).catch(() => {})
    throw error
  })
  keep(images)
  place.report({ event: 'round', id: chain.id, number: chain.under, pages, bytes: pages * PAGE_BYTES, ms })
}
