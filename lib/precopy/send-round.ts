/**
 * The layers of a chain, from a criu that speaks the page server protocol to us, to the cache (PROTOCOL.md).
 *
 * Every pre-dump clears the kernel's marks of changed pages, so a chain has one owner, and one that breaks is over: its next round would
 * miss pages, and nobody would notice before the process does.
 */
import { randomBytes } from 'node:crypto'
import { statSync } from 'node:fs'
import { join } from 'node:path'
import type { DumpSteps } from '../criu/incoming-dump.ts'
import type { PageServer } from '../criu/page-server.ts'
import { Fault } from '../fault.ts'
import { hex64 } from '../format/digest.ts'
import { type ImageName, INVENTORY, type SnapshotId } from '../format/names.ts'
import { PAGE_BYTES } from '../format/pagemap.ts'
import { TOKEN_BYTES } from '../format/wire.ts'
import { onFirstImage } from '../handover/source.ts'
import { readAnswers } from '../handover/target-answers.ts'
import { listImages, piecesOf } from '../store/directory.ts'
import { openCriuTimeout } from '../stream/criu-timeout.ts'
import { DedupSender } from '../stream/dedup-send.ts'
import { accepting, frameReader, frameWriter } from '../stream/frames.ts'
import type { ImageSource, OpenImage } from '../stream/image.ts'
import type { Link } from '../stream/link.ts'
import { type SendOptions, sendSnapshot } from '../stream/send.ts'
import { singleLink } from '../stream/source-link.ts'
import type { Snapshot } from '../stream/summary.ts'
import type { Tuning } from '../stream/tuning.ts'
import { rejectAfter, rejectWhenAborted } from '../stream/wait.ts'

/** What the cache holds of one chain, and what CRIU needs to know of it. */
export interface PreCopyChain {
  readonly id: SnapshotId
  readonly token: Buffer
  /** How many rounds. */
  under: number
  /** What the last of them has pages of. */
  pagemaps: ReadonlySet<ImageName>
}

/** One without rounds. */
export function newChain(id: SnapshotId): PreCopyChain {
  return { id, token: randomBytes(TOKEN_BYTES), under: 0, pagemaps: new Set() }
}

/** What the next layer says of itself. */
export function nextLayer({ under, token }: PreCopyChain, last: boolean): NonNullable<SendOptions['layer']> {
  return { under, last, token }
}

export interface RoundOptions {
  connect: (signal: AbortSignal) => Promise<Link>
  tuning: Tuning | undefined
  /** About how many bytes will come. */
  reserve: number
  /** How long the cache may take to seal it, and criu may say nothing. */
  timeoutMs: number
  signal: AbortSignal
}

/** Pages, and how long they took from the first one until they were sealed. */
export interface SentRound {
  pages: number
  ms: number
}

/**
 * Sends a pre-dump as the next round, and lets its criu go when the cache has sealed it. Throws, and then the chain is over: `FAILED_DUMP`
 * where criu broke off, what the cache refuses, `TIMEOUT`, `LINK`. `server` is destroyed.
 */
export async function sendRound(chain: PreCopyChain, server: PageServer, options: RoundOptions): Promise<SentRound> {
  const { connect, tuning, reserve, timeoutMs, signal } = options
  const stop = new AbortController()
  const outside = (): void => stop.abort(signal.reason)
  if (signal.aborted) outside()
  signal.addEventListener('abort', outside)
  const over = new Fault('ABORTED', 'over')
  const known = tuning?.dedup && new DedupSender(tuning.dedup)
  const line = singleLink(connect(stop.signal), timeoutMs, stop)
  const silence = openCriuTimeout(timeoutMs, (reason) => {
    stop.abort(reason)
    server.destroy(reason)
  })
  try {
    // CRIU is read from before the cache is there: it may ask with the tasks frozen.
    const talk = line.reader.then((reader) => readAnswers(reader, false, known))
    talk.then((said) => said.offer).catch((reason: unknown) => stop.abort(reason))
    let begun = performance.now()
    const begin = (): void => {
      begun = performance.now()
    }
    // The tasks run by then: a criu pre-dump sends pages when it has thawed them.
    const offered = (): Promise<void> =>
      Promise.race([known?.ready, rejectAfter(timeoutMs, 'the target did not say what it has', stop.signal)])
    const source = known === undefined ? server : waiting(server, silence.during(offered()))
    const sent = await sendSnapshot(line.writer, chain.id, onFirstImage(source, begin), {
      ...tuning,
      known,
      silence,
      signal: stop.signal,
      layer: nextLayer(chain, false),
      reserve,
    })
    const what = 'the target did not seal the round'
    const sealed = talk.then((said) => said.sealed)
    const digest = await Promise.race([
      sealed,
      rejectAfter(timeoutMs, what, stop.signal),
      rejectWhenAborted(stop.signal),
    ])
    if (digest !== sent.digest) {
      throw new Fault('DIGEST', `the target sealed ${hex64(digest)}, sent was ${hex64(sent.digest)}`)
    }
    const ms = performance.now() - begun
    await server.answerClose(true)
    chain.under++
    chain.pagemaps = new Set(sent.images.map(({ name }) => name))
    return { pages: pagesOf(sent), ms }
  } catch (error) {
    server.destroy(error as Error)
    throw error
  } finally {
    signal.removeEventListener('abort', outside)
    silence.close()
    stop.abort(over)
    line.destroy()
  }
}

/** Pages go out when it is known which of them the cache has; what CRIU asks before is answered. */
function waiting(source: ImageSource, ready: Promise<void>): ImageSource {
  ready.catch(() => {})
  async function* after(pieces: AsyncIterable<Uint8Array> | Iterable<Uint8Array>): AsyncGenerator<Uint8Array> {
    await ready
    yield* pieces
  }
  async function* images(): AsyncGenerator<OpenImage> {
    for await (const { name, body } of source.images) {
      yield { name, body: body.kind === 'pieces' ? { kind: 'pieces', pieces: after(body.pieces) } : body }
    }
  }
  return { ...source, images: images(), destroy: (reason) => source.destroy(reason) }
}

export function pagesOf({ images }: Snapshot): number {
  const pages = images.filter(({ name }) => name.startsWith('pages-'))
  return pages.reduce((sum, { size }) => sum + size, 0) / PAGE_BYTES
}

/**
 * The last layer as an image source: the pages by the page server, and what criu has written into `directory` by itself. CRIU is let go on when the
 * target has the pages: one without our script kills the tasks then. `images` throws `FAILED_DUMP` where criu has `ended` without a dump.
 */
export function lastLayer(
  server: PageServer,
  directory: string,
  { complete, taken, answered, ended }: Partial<DumpSteps> & { ended: Promise<unknown> },
): ImageSource {
  const stop = new AbortController()
  const begun = Date.now()
  async function* images(): AsyncGenerator<OpenImage> {
    let count = 0
    for await (const image of server.images) {
      count++
      yield image
    }
    await taken?.(count)
    await server.answerClose(true)
    answered?.()
    await Promise.race([complete, ended, rejectWhenAborted(stop.signal)].filter((event) => event !== undefined))
    const names = listImages(directory)
    refuseIfOld(join(directory, INVENTORY), begun)
    for (const name of names) {
      yield { name, body: { kind: 'pieces', pieces: piecesOf(join(directory, name)) } }
    }
  }
  return {
    images: images(),
    destroy(reason) {
      stop.abort(reason)
      server.destroy(reason)
    },
  }
}

/** A file system's clock may be behind by a tick. */
const TICK_MS = 20

/** A dump that failed leaves what an earlier one wrote there. */
function refuseIfOld(inventory: string, begun: number): void {
  if (statSync(inventory).mtimeMs >= begun - TICK_MS) return
  throw new Fault('FAILED_DUMP', `the dump did not finish: ${inventory} is of an earlier one`, {
    hint: "use a new directory for each dump; see the dump's own log",
  })
}

/** What a cache says to somebody who gives up. */
const farewell = accepting('hello', 'refused')

/** Tells the cache that no layer follows: it drops what it has of the chain. Throws `LINK`. */
export async function abandonChain(
  chain: PreCopyChain,
  connect: RoundOptions['connect'],
  signal: AbortSignal,
): Promise<void> {
  const link = await connect(signal)
  const cut = (): void => link.destroy(signal.reason as Error)
  signal.addEventListener('abort', cut)
  try {
    const writer = frameWriter(link.outlet)
    await writer.send({ type: 'snapshot', id: chain.id })
    // As the first of a new chain, which takes the place of what there is: it may have sealed a round more than we know.
    await writer.send({ type: 'layer', under: 0, last: false, token: chain.token })
    await writer.send({ type: 'failed', code: 'ABORTED', reason: 'no other round follows' })
    // It says that it has heard, and closes.
    const reader = frameReader(link.inlet)
    while ((await reader.next(farewell)) !== undefined);
  } finally {
    signal.removeEventListener('abort', cut)
    link.destroy()
  }
}
