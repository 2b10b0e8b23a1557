/**
 * What a dump with `--remote` reads at the source: the list of snapshots, and the pagemaps of the rounds before it, which are kept here.
 *
 * From the pages of a parent criu only reads in order to skip them, without looking; where there are none it goes on, and says so in its log
 * (criu/pagemap.c and criu/img-remote.c of these trees). So no pages are kept here or fetched back, and it gets none. Refused: zeros in
 * their place. criu would read them all while the tasks are frozen, and they could be taken for contents.
 */

import { copied } from '../criu/serve.ts'
import { type ImageName, INVENTORY } from '../format/names.ts'
import { pagesPattern } from '../format/pagemap.ts'
import type { Fd } from '../kernel/fd.ts'
import { closeFd } from '../kernel/readiness.ts'
import { writeAll } from '../kernel/transfer.ts'
import { pagemapPattern } from '../store/directory-chain.ts'
import type { RemoteImages } from './images.ts'
import { encodeIds, giveImage, type Reader, reply } from './local-wire.ts'
import { ENOENT, type RemoteRequest } from './messages.ts'

/** What later dumps may read of a round. */
export interface ReadableRound {
  snapshot: string
  kept: ReadonlyMap<ImageName, Buffer>
  pages: ReadonlySet<ImageName>
}

/** One that dumps, and reads. */
export interface Reading {
  readonly snapshot: string
  readonly images: Pick<RemoteImages, 'kept' | 'names'>
  readonly reader: Reader
  /** Those before it; rejects if it comes to nothing. */
  readonly rounds: Promise<readonly ReadableRound[]>
}

/** What is kept of one chain; of older rounds there may be nothing, for criu opens them without need. */
const MOST_KEPT = 64 * 2 ** 20

/** One round more. */
export function withRound(
  rounds: readonly ReadableRound[],
  { snapshot, images }: Pick<Reading, 'snapshot' | 'images'>,
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

/** Answers a read, when the rounds before are safe, and closes the socket. */
export async function answerRead(
  socket: Fd,
  request: Extract<RemoteRequest, { kind: 'read' | 'pull' }>,
  dump: Reading | undefined,
): Promise<void> {
  let ours = true
  try {
    const rounds = await dump?.rounds.catch(() => undefined)
    if (dump === undefined || rounds === undefined) return await reply(socket, ENOENT)
    if (request.kind === 'pull') {
      await reply(socket, 0)
      const ids = [...rounds.map((round) => round.snapshot), dump.snapshot]
      return await writeAll(socket, encodeIds(ids), { socket: true })
    }
    const bytes = bytesOf(request, dump, rounds)
    await reply(socket, bytes === undefined ? ENOENT : 0)
    if (bytes === undefined) return
    ours = false
    const image = { name: request.name, size: bytes.length, digest: 0n, pieces: [...copied([bytes])] }
    await giveImage(socket, image, dump.reader, { images: [], bytes: 0 })
  } finally {
    if (ours) closeFd(socket)
  }
}

/** Undefined for what is not there. */
function bytesOf(
  { name, snapshot }: { name: ImageName; snapshot: string },
  dump: Reading,
  rounds: readonly ReadableRound[],
): Buffer | undefined {
  if (snapshot === dump.snapshot) return dump.images.kept.get(name)
  const round = rounds.find((one) => one.snapshot === snapshot)
  return round?.kept.get(name) ?? (round?.pages.has(name) ? Buffer.alloc(0) : undefined)
}
