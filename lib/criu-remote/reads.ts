/**
 * What a dump with `--remote` reads at the source: the list of snapshots, and the pagemaps of the rounds before it,
 * which are kept here.
 *
 * CRIU reads the pages of a parent only to skip them; where there are none it goes on, and notes so in its log
 * (criu/pagemap.c and criu/img-remote.c of these trees). So no pages are kept here or fetched back, and criu gets none.
 * Refused: zeros in their place. CRIU would read them all while the tasks are frozen, and somebody could take them for
 * contents.
 */

import { copied } from '../criu/serve.ts'
import { type ImageName, INVENTORY } from '../format/names.ts'
import { pagesPattern } from '../format/pagemap.ts'
import type { Fd } from '../kernel/fd.ts'
import { pagemapPattern } from '../store/directory-chain.ts'
import type { RemoteImages } from './images.ts'
import { answerRead, type ReadAnswer, type Reader } from './local-wire.ts'
import { ENOENT, type ReadRequest } from './messages.ts'

/** What later dumps may read of a round. */
export interface ReadableRound {
  snapshot: string
  kept: ReadonlyMap<ImageName, Buffer>
  pages: ReadonlySet<ImageName>
}

/** A dump or round at work, which reads. */
export interface ReadingDump {
  readonly snapshot: string
  readonly images: Pick<RemoteImages, 'kept' | 'names'>
  readonly reader: Reader
  /** The rounds before it; rejects if the dump comes to nothing. */
  readonly rounds: Promise<readonly ReadableRound[]>
}

/** Most bytes that are kept of one chain. Of older rounds nothing is kept beyond it: criu opens them without need. */
const MOST_KEPT = 64 * 2 ** 20

/** The readable rounds of a chain when `snapshot` is sealed as one more. */
export function withRound(
  rounds: readonly ReadableRound[],
  { snapshot, images }: Pick<ReadingDump, 'snapshot' | 'images'>,
): ReadableRound[] {
  const kept = [...images.kept].filter(([name]) => name === INVENTORY || pagemapPattern.test(name))
  const pages = new Set([...images.names].filter((name) => pagesPattern.test(name)))
  const all = [...rounds, { snapshot, kept: new Map(kept), pages }]
  let left = MOST_KEPT
  for (const round of [...all].reverse()) {
    for (const bytes of round.kept.values()) left -= bytes.length
    if (left < 0) round.kept = new Map()
  }
  return all
}

/** Answers a read of `dump` when the rounds before it are sealed, and closes the socket. */
export function answerDumpRead(socket: Fd, request: ReadRequest, dump: ReadingDump | undefined): Promise<void> {
  const find = async (): Promise<ReadAnswer> => {
    const rounds = await dump?.rounds.catch(() => undefined)
    if (dump === undefined || rounds === undefined) return { error: ENOENT }
    if (request.kind === 'pull') return { ids: [...rounds.map((round) => round.snapshot), dump.snapshot] }
    const bytes = bytesOf(request, dump, rounds)
    if (bytes === undefined) return { error: ENOENT }
    return { image: { name: request.name, size: bytes.length, digest: 0n, pieces: [...copied([bytes])] } }
  }
  return answerRead(socket, find, dump?.reader ?? { form: undefined }, { images: [], bytes: 0 })
}

/** Undefined for an image that does not exist. */
function bytesOf(
  { name, snapshot }: { name: ImageName; snapshot: string },
  dump: ReadingDump,
  rounds: readonly ReadableRound[],
): Buffer | undefined {
  if (snapshot === dump.snapshot) return dump.images.kept.get(name)
  const round = rounds.find((each) => each.snapshot === snapshot)
  return round?.kept.get(name) ?? (round?.pages.has(name) ? Buffer.alloc(0) : undefined)
}
