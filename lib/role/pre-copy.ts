/**
 * pre-copy: rounds of `criu pre-dump --track-mem` while the process runs, and then a hand-over of what changed since.
 *
 * CRIU speaks its page server protocol to us over an inherited socket, so pages go from it to the cache and touch no disk; what
 * little it writes by itself stays in memory (tmpfs). Rounds and the last dump are layers of one chain at the cache (PROTOCOL.md). Every pre-dump
 * clears the kernel's marks of changed pages, so a chain has one owner, and one that breaks is over: its next round would miss pages.
 */
import { randomBytes } from 'node:crypto'
import { mkdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { Fault } from '../fault.ts'
import { hex64 } from '../format/digest.ts'
import type { ImageName, SnapshotId } from '../format/names.ts'
import { PAGE_BYTES } from '../format/pagemap.ts'
import { decodeDumpStats } from '../format/stats.ts'
import { TOKEN_BYTES } from '../format/wire.ts'
import type { Until } from '../format/words.ts'
import { setBlocking } from '../kernel/fd.ts'
import { isRunning, memoryOfTree } from '../kernel/process.ts'
import { closeFd } from '../kernel/readiness.ts'
import { socketPair } from '../kernel/unix.ts'
import type { Report } from '../progress.ts'
import { directorySource } from '../store/directory.ts'
import { connectEndpoint, type Endpoint } from '../stream/endpoint.ts'
import { frameReader, frameWriter } from '../stream/frames.ts'
import type { ImageSource, OpenImage } from '../stream/image.ts'
import type { Link } from '../stream/link.ts'
import { type Snapshot, sendSnapshot } from '../stream/send.ts'
import type { Tuning } from '../stream/tuning.ts'
import type { Approach } from './approach.ts'
import { type CriuRun, checkCriuOptions, refuseLeaving, startCriu } from './criu.ts'
import { closedGate, writeScript } from './gate.ts'
import { HOLD_DIRECTORY } from './hold.ts'
import { type PageServer, pageServer } from './page-server.ts'
import { part, remind, settle, type Way } from './parting.ts'
import { enough, predictedFreezeMs, type Round, type RoundRule } from './rounds.ts'
import { listenTo } from './said.ts'
import { aborted, late } from './wait.ts'
import { memoryDirectory, openDirectory, removeIfEmpty } from './workdir.ts'

export interface PreCopyOptions {
  criu: string
  pid: number
  criuOptions: readonly string[]
  id: SnapshotId
  until: Until
  tuning: Tuning
  rule: RoundRule
}

export interface Target {
  cache: Endpoint
  /** Where verdicts are kept; that of all such commands if undefined. */
  directory: string | undefined
  /** How long it may be out of reach, and may take to agree. */
  timeoutMs: number
  report: Report
  signal: AbortSignal
}

/** One chain at the cache, and what CRIU needs to know of its last layer. */
interface Chain {
  readonly token: Buffer
  /** In memory: a directory for each layer. */
  readonly path: string
  readonly rounds: Round[]
  /** What its last layer has pages of. */
  pagemaps: ReadonlySet<ImageName>
}

/** What a criu of ours has been started for. */
interface Layer {
  run: CriuRun
  server: PageServer
  directory: string
}

/**
 * Moves the tree of `pid` to the cache at the end of `way`. Throws `CRIU` where the kernel does not track changed pages, and
 * like `part`; then the tasks run on here, or the message says where they are.
 */
export async function preCopy(options: PreCopyOptions, target: Target): Promise<void> {
  const { criuOptions, pid } = options
  checkCriuOptions(criuOptions)
  refuseLeaving(criuOptions, 'pre-copy', 'for a copy use a proxy: criu dump --stream -R')
  if (!isRunning(pid)) throw new Fault('MISSING', `no process ${pid}`, { hint: 'look with: ps -e' })
  await withWay(target, async (way) => {
    remind(way)
    await copyAll(options, way)
  })
}

/** Delivers the verdict of an earlier hand-over that is still owed. Throws like `settle`. */
export async function settlePreCopy(id: SnapshotId, target: Target): Promise<void> {
  await withWay(target, (way) => settle(id, way))
}

async function withWay(
  { cache, directory, timeoutMs, report, signal }: Target,
  work: (way: Way) => Promise<void>,
): Promise<void> {
  const debts = openDirectory(directory ?? HOLD_DIRECTORY)
  const dir = directory === undefined ? '' : ` -D ${directory}`
  const settling = (id: SnapshotId): string => `pre-copy${dir} --settle ${id} --address HOST --port N`
  const connect = (stop: AbortSignal): Promise<Link> => connectEndpoint(cache, timeoutMs, stop)
  try {
    await work({ debts, connect, settling, keeps: true, report, signal, timeoutMs })
  } finally {
    if (directory === undefined) removeIfEmpty(debts)
  }
}

async function copyAll(options: PreCopyOptions, way: Way): Promise<void> {
  const { rule } = options
  const place = memoryDirectory()
  const chain: Chain = { token: randomBytes(TOKEN_BYTES), path: place.path, rounds: [], pagemaps: new Set() }
  try {
    for (let why = enough(chain.rounds, rule); why === undefined; why = enough(chain.rounds, rule)) {
      await copyRound(chain, options, way)
      way.report({ event: 'round', ...roundSaid(chain.rounds), last: enough(chain.rounds, rule) })
    }
    await handOver(chain, options, way)
  } finally {
    place.remove()
  }
}

function roundSaid(rounds: readonly Round[]) {
  const { pages, ms } = rounds.at(-1) as Round
  return { number: rounds.length, pages, bytes: pages * PAGE_BYTES, ms, predictedMs: predictedFreezeMs(rounds) }
}

/** Starts criu on the next layer of the chain. It speaks to `server`. */
function startLayer(
  chain: Chain,
  action: 'pre-dump' | 'dump',
  { criu, pid, criuOptions }: PreCopyOptions,
  more: readonly string[],
): Layer {
  const number = chain.rounds.length
  const directory = join(chain.path, String(number))
  mkdirSync(directory, { mode: 0o700 })
  const [ours, theirs] = socketPair()
  setBlocking(theirs)
  try {
    const run = startCriu(
      criu,
      action,
      [
        ...['-t', String(pid), '-D', directory, '--track-mem', '--page-server', '--ps-socket', '3'],
        ...(number === 0 ? [] : ['--prev-images-dir', `../${number - 1}`]),
        ...more,
        ...criuOptions,
      ],
      [theirs],
    )
    return { run, server: pageServer(ours, { hasParent: (name) => chain.pagemaps.has(name) }), directory }
  } finally {
    closeFd(theirs)
  }
}

async function copyRound(chain: Chain, options: PreCopyOptions, { connect, timeoutMs, signal }: Way): Promise<void> {
  const { id, tuning, pid } = options
  const link = await connect(signal)
  const stop = new AbortController()
  const outside = (): void => stop.abort(signal.reason)
  signal.addEventListener('abort', outside)
  let layer: Layer | undefined
  try {
    const said = listenTo(frameReader(link.inlet), false)
    const broken = said.offer.catch((reason: unknown) => stop.abort(reason))
    const writer = frameWriter(link.outlet)
    layer = startLayer(chain, 'pre-dump', options, [])
    const { server, run, directory } = layer
    let begun = performance.now()
    const begin = (): void => {
      begun = performance.now()
    }
    const sent = await sendSnapshot(writer, id, noting(server, begin), {
      ...tuning,
      signal: stop.signal,
      layer: { under: chain.rounds.length, last: false, token: chain.token },
      reserve: chain.rounds.length === 0 ? memoryOfTree(pid) : 0,
    }).catch(async (error: unknown) => {
      throw await better(error, run)
    })
    const digest = await Promise.race([
      said.sealed,
      late(timeoutMs, 'the target did not seal the round', stop.signal),
      aborted(stop.signal),
    ])
    if (digest !== sent.digest) {
      throw new Fault('DIGEST', `the target sealed ${hex64(digest)}, sent was ${hex64(sent.digest)}`)
    }
    const ms = performance.now() - begun
    server.answerClose(true)
    await run.done
    await Promise.race([broken, undefined])
    chain.rounds.push({ pages: pagesOf(sent), ms, frozenMs: frozenMs(directory) })
    chain.pagemaps = new Set(sent.images.map(({ name }) => name))
  } finally {
    signal.removeEventListener('abort', outside)
    stop.abort(new Fault('ABORTED', 'over'))
    layer?.server.destroy(new Fault('ABORTED', 'over'))
    link.destroy()
    await layer?.run.done.catch(() => {})
  }
}

/** criu's own error explains a conversation that broke off. */
async function better(error: unknown, run: CriuRun): Promise<unknown> {
  if (!(error instanceof Fault) || error.code !== 'FAILED_DUMP') return error
  return run.done.then(
    () => error,
    (cause: unknown) => cause,
  )
}

function pagesOf({ images }: Snapshot): number {
  const bytes = images.filter(({ name }) => name.startsWith('pages-')).reduce((sum, { size }) => sum + size, 0)
  return bytes / PAGE_BYTES
}

/** Calls `first` when the first image is opened. */
function noting({ images, destroy }: ImageSource, first: () => void): ImageSource {
  async function* noted(): AsyncGenerator<OpenImage> {
    let begun = false
    for await (const image of images) {
      if (!begun) first()
      begun = true
      yield image
    }
  }
  return { images: noted(), destroy }
}

async function handOver(chain: Chain, options: PreCopyOptions, way: Way): Promise<void> {
  const { id, until, tuning, pid } = options
  const gates = chain.path
  const script = writeScript(gates, 'post-dump')
  const { run, server, directory } = startLayer(chain, 'dump', options, ['--action-script', script])
  const gate = closedGate(gates, run.pid, 'pre-dump')
  const remove = (): void => {
    gate.remove()
    server.destroy(new Fault('ABORTED', 'over'))
  }
  try {
    await Promise.race([gate.held, run.done, aborted(way.signal)])
    const approach: Approach = {
      pid: run.pid,
      bytes: Math.min(memoryOfTree(pid), 2 * (chain.rounds.at(-1)?.pages ?? 0) * PAGE_BYTES),
      open: gate.open,
      images: (complete) => lastLayer(server, directory, complete ?? run.done, run),
      remove,
    }
    const layer = { under: chain.rounds.length, last: true, token: chain.token }
    await part(approach, run.done, way, { id, until, gates, tuning, resumes: true, layer })
    way.report({ event: 'dumped', frozenMs: frozenMs(directory), ms: 0 })
  } catch (error) {
    throw await better(error, run)
  } finally {
    remove()
    await run.done.catch(() => {})
  }
}

/** The pages by the page server, and what criu has written by itself when it waits at post-dump. */
function lastLayer(server: PageServer, directory: string, complete: Promise<void>, run: CriuRun): ImageSource {
  async function* images(): AsyncGenerator<OpenImage> {
    yield* server.images
    server.answerClose(true)
    await Promise.race([complete, run.done])
    yield* directorySource(directory).images
  }
  return { images: images(), destroy: (reason) => server.destroy(reason) }
}

function frozenMs(directory: string): number {
  return decodeDumpStats(readFileSync(join(directory, 'stats-dump'))).frozenTime / 1000
}
