/**
 * One dump or pre-dump with `--remote`: how it ends, and what it reads at the source. That is the list of snapshots,
 * and the pagemaps of the rounds before it, which are kept here.
 *
 * CRIU reads the pages of a parent only to skip them; where there are none it goes on, and notes so in its log
 * (criu/pagemap.c and criu/img-remote.c of these trees). So no pages are kept here or fetched back, and criu gets none.
 * Refused: zeros in their place. CRIU would read them all while the tasks are frozen, and somebody could take them for
 * contents.
 */
import type { CriuCommand } from '../criu/command-line.ts'
import { copied } from '../criu/serve.ts'
import { Fault } from '../fault.ts'
import { type ImageName, INVENTORY } from '../format/names.ts'
import { pagesPattern } from '../format/pagemap.ts'
import { isDying, openProcess, type Process, startTime } from '../kernel/process.ts'
import { pagemapPattern } from '../store/directory-chain.ts'
import { defer } from '../stream/wait.ts'
import { RemoteImages, unfinishedImages } from './images.ts'
import { newReader, type ReadAnswer } from './local-wire.ts'
import { encodeIds, type ReadRequest } from './messages.ts'

/** What later dumps may read of a round. */
export interface ReadableRound {
  snapshot: string
  kept: ReadonlyMap<ImageName, Buffer>
  pages: ReadonlySet<ImageName>
}

/** Most bytes that are kept of one chain. Of older rounds nothing is kept beyond it: criu opens them without need. */
const MOST_KEPT = 64 * 2 ** 20

/** One dump or pre-dump. */
export class Dump {
  readonly pid: number
  /** Its `-D`. */
  readonly snapshot: string
  /** Undefined where the criu cannot be seen. */
  readonly command: CriuCommand | undefined
  readonly images = new RemoteImages()
  readonly reader = newReader()
  readonly criu: Process | undefined
  /** Resolves when nothing of it is under way. */
  settled: Promise<void> = Promise.resolve()
  /** The rounds before it. */
  readonly #rounds = defer<readonly ReadableRound[]>()
  /** When the first of its tasks was started. */
  readonly #start: number | undefined

  constructor(pid: number, snapshot: string, command: CriuCommand | undefined) {
    this.pid = pid
    this.snapshot = snapshot
    this.command = command
    this.criu = openProcess(pid)
    this.#start = command && startTime(command.tree)
  }

  get isRound(): boolean {
    return this.command?.action === 'pre-dump'
  }

  /** Tells the rounds before it. Returns the `-D` of all of them and of this one. */
  setRounds(rounds: readonly ReadableRound[]): string[] {
    this.#rounds.resolve(rounds)
    const snapshots = [...rounds.map((round) => round.snapshot), this.snapshot]
    this.images.ids = encodeIds(snapshots)
    return snapshots
  }

  /** The answer to a read, when the rounds before it are sealed; undefined for an image that does not exist. */
  async answerTo(request: ReadRequest): Promise<ReadAnswer | undefined> {
    const rounds = await this.#rounds.promise.catch(() => undefined)
    if (rounds === undefined) return undefined
    if (request.kind === 'pull') return { ids: [...rounds.map((round) => round.snapshot), this.snapshot] }
    const { name, snapshot } = request
    const round = rounds.find((each) => each.snapshot === snapshot)
    const noPages = round?.pages.has(name) ? Buffer.alloc(0) : undefined
    const bytes = snapshot === this.snapshot ? this.images.kept.get(name) : (round?.kept.get(name) ?? noPages)
    return bytes && { image: { name, size: bytes.length, digest: 0n, pieces: [...copied([bytes])] } }
  }

  /** The readable rounds of its chain, when it is sealed as one more. */
  addTo(rounds: readonly ReadableRound[]): ReadableRound[] {
    const kept = [...this.images.kept].filter(([name]) => name === INVENTORY || pagemapPattern.test(name))
    const pages = new Set([...this.images.names].filter((name) => pagesPattern.test(name)))
    const all = [...rounds, { snapshot: this.snapshot, kept: new Map(kept), pages }]
    let left = MOST_KEPT
    for (const round of [...all].reverse()) {
      for (const bytes of round.kept.values()) left -= bytes.length
      if (left < 0) round.kept = new Map()
    }
    return all
  }

  /** Its criu sends nothing more. */
  end(): void {
    if (this.isRound || this.#hasKilled()) this.images.end()
    else if (!this.images.isOver) this.images.destroy(unfinishedImages())
  }

  /** Whatever still reads or writes gets `ABORTED`. */
  abort(): void {
    const over = new Fault('ABORTED', 'the dump is over')
    this.#rounds.reject(over)
    this.images.destroy(over)
  }

  #hasKilled(): boolean {
    const [tree, start] = [this.command?.tree, this.#start]
    if (tree === undefined || start === undefined || !this.images.names.has(INVENTORY)) return false
    return startTime(tree) !== start || isDying(tree)
  }
}
