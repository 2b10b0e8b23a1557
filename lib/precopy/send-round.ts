/**
 * Sends the layers of a chain to the cache, from a criu that speaks the page server protocol to us
 * (docs/protocol/wire.md).
 *
 * Every pre-dump clears the kernel's marks of changed pages, so a chain has one owner, and a chain that breaks is over:
 * its next round would miss pages, and only the restored process would notice.
 */
import { randomBytes } from 'node:crypto'
import { statSync } from 'node:fs'
import { join } from 'node:path'
import type { DumpSteps } from '../criu/incoming-dump.ts'
import type { PageServer } from '../criu/page-server.ts'
import { Fault } from '../fault.ts'
import { TOKEN_BYTES } from '../format/frame.ts'
import { type ImageName, INVENTORY, type SnapshotId } from '../format/names.ts'
import { PAGE_BYTES } from '../format/pagemap.ts'
import { overLink } from '../handover/deliver-verdict.ts'
import { onFirstImage } from '../handover/source.ts'
import { readAnswers } from '../handover/target-answers.ts'
import { listImages, piecesOf } from '../store/directory.ts'
import { openCriuTimeout } from '../stream/criu-timeout.ts'
import { DedupSender } from '../stream/dedup-send.ts'
import { accepting } from '../stream/frames.ts'
import type { ImageSource, OpenImage } from '../stream/image.ts'
import type { Link } from '../stream/link.ts'
import { type SendOptions, sendSnapshot } from '../stream/send.ts'
import { singleLink } from '../stream/source-link.ts'
import type { Snapshot } from '../stream/summary.ts'
import type { Tuning } from '../stream/tuning.ts'
import { abortWith, rejectAfter, rejectWhenAborted } from '../stream/wait.ts'

/** The state of one chain: the rounds that the cache has, and the pagemaps that CRIU asks about. */
export interface PreCopyChain {
  readonly id: SnapshotId
  readonly token: Buffer
  /** How many rounds the cache has sealed. */
  under: number
  /** The pagemaps of the last round. */
  pagemaps: ReadonlySet<ImageName>
}

/** A chain without rounds. */
export function newChain(id: SnapshotId): PreCopyChain {
  return { id, token: randomBytes(TOKEN_BYTES), under: 0, pagemaps: new Set() }
}

/** How the next layer is announced to the cache. */
export function nextLayer({ under, token }: PreCopyChain, last: boolean): NonNullable<SendOptions['layer']> {
  return { under, last, token }
}

interface RoundOptions {
  connect: (signal: AbortSignal) => Promise<Link>
  tuning: Tuning | undefined
  /** About how many bytes will come. */
  reserve: number
  /** How long the cache may take to seal the round, and criu may say nothing. */
  timeoutMs: number
  signal: AbortSignal
}

export interface SentRound {
  pages: number
  /** From the first page until all were sealed. */
  ms: number
}

/**
 * Sends a pre-dump as the next round, and lets its criu go when the cache has sealed it. The chain is over when this
 * throws: `FAILED_DUMP` where criu broke off, the cache's refusal, `TIMEOUT`, `LINK`. `server` is destroyed then.
 */
export async function sendRound(chain: PreCopyChain, server: PageServer, options: RoundOptions): Promise<SentRound> {
  const { connect, tuning, reserve, timeoutMs } = options
  const stop = new AbortController()
  const { signal } = stop
  const release = abortWith(stop, options.signal)
  const dedup = tuning?.dedup && new DedupSender(tuning.dedup)
  const link = singleLink(connect(signal), timeoutMs, stop)
  const silence = openCriuTimeout(timeoutMs, (reason) => {
    stop.abort(reason)
    server.destroy(reason)
  })
  const inTime = <Result>(work: Promise<Result>, what: string): Promise<Result> =>
    Promise.race([work, rejectAfter(timeoutMs, what, signal)])
  try {
    // CRIU is read from before the cache is there: it may ask with the tasks frozen.
    const answers = link.reader.then((reader) => readAnswers(reader, false, dedup))
    answers.then(({ offer }) => offer).catch((reason: unknown) => stop.abort(reason))
    let begun = performance.now()
    const offered = dedup && silence.during(inTime(dedup.ready, 'the target did not say what it has'))
    const source = onFirstImage(offered === undefined ? server : waiting(server, offered), () => {
      begun = performance.now()
    })
    const sent = await sendSnapshot(link.writer, chain.id, source, {
      ...tuning,
      known: dedup,
      silence,
      signal,
      layer: nextLayer(chain, false),
      reserve,
    })
    const sealed = answers.then((answered) => answered.whenSealed(sent))
    await inTime(sealed, 'the target did not seal the round')
    const ms = performance.now() - begun
    await server.answerClose(true)
    chain.under++
    chain.pagemaps = new Set(sent.images.map(({ name }) => name))
    return { pages: pagesOf(sent), ms }
  } catch (error) {
    server.destroy(error as Error)
    throw error
  } finally {
    release()
    silence.close()
    stop.abort(new Fault('ABORTED', 'over'))
    link.destroy()
  }
}

/** Holds the pages back until `ready`, when it is known which of them the cache has. CRIU is answered meanwhile. */
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
 * The last layer as an image source: the pages come by the page server, and the other images from `directory`, where
 * criu has written them. CRIU may go on when the target has the pages: a CRIU without our script kills the tasks then.
 * `images` throws `FAILED_DUMP` where criu has `ended` without a dump.
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

/** How far the clock of a file system may be behind. */
const TICK_MS = 20

/** Throws `FAILED_DUMP` for an inventory that an earlier dump has written: the last one failed. */
function refuseIfOld(inventory: string, begun: number): void {
  if (statSync(inventory).mtimeMs >= begun - TICK_MS) return
  throw new Fault('FAILED_DUMP', `the dump did not finish: ${inventory} is of an earlier one`, {
    hint: "use a new directory for each dump; see the dump's own log",
  })
}

/** What a cache answers to a chain that is given up. */
const answersToAbandon = accepting('hello', 'refused')

/** Tells the cache that no layer follows: it drops the rounds of the chain. Throws `LINK`. */
export async function abandonChain(
  chain: PreCopyChain,
  connect: RoundOptions['connect'],
  signal: AbortSignal,
): Promise<void> {
  await overLink(await connect(signal), signal, async (reader, writer) => {
    await writer.send({ type: 'snapshot', id: chain.id })
    // The first layer of a new chain replaces the old one, of which the cache may have sealed a round more than we
    // know.
    await writer.send({ type: 'layer', under: 0, last: false, token: chain.token })
    await writer.send({ type: 'failed', code: 'ABORTED', reason: 'no other round follows' })
    // The cache answers, and closes.
    while ((await reader.next(answersToAbandon)) !== undefined);
  })
}
