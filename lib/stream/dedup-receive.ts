/** Pages that do not come again: the receiver has them, in what it offered or in this snapshot, or they are zeros. */
import { Fault } from '../fault.ts'
import type { Digest } from '../format/digest.ts'
import { OFFERED } from '../format/page-digest.ts'
import { PAGE_BYTES } from '../format/pagemap.ts'
import type { Frame } from '../format/wire.ts'
import { unexpected } from './frames.ts'
import type { ImageWriter, SharedPages } from './image.ts'

type Same = Extract<Frame, { type: 'same' }>

/** What a sender may name. */
export interface Offered {
  /**
   * Where so many pages lie, from this number on: each in one extent. Throws `FORMAT` for those that were not offered,
   * `MEMORY` where they had to go.
   */
  places(first: number, pages: number): Iterable<[address: number, bytes: number]>
  /** The sender is not silent. */
  used(): void
}

/** An image that comes, as far as it is here. */
export interface Filling {
  writer: ImageWriter
  sum: Digest
  size: number
}

export interface DedupReceiver {
  opened(channel: number, writer: ImageWriter): void
  /** The pages that `frame` names are next in `image`. Throws `FORMAT` for what is not here, `MEMORY`. */
  take(frame: Same, image: Filling): void
  /** Zeros are next; returns false where they must be written. Throws `MEMORY`. */
  zeros(bytes: number, image: Filling): boolean
}

/** `options.offer` may be there only when the snapshot is known to be part of a chain. */
export function dedupReceiver(options: { readonly offer?: Offered | undefined }): DedupReceiver {
  /** Of this snapshot's pages, by channel. */
  const sources = new Map<number, SharedPages>()

  function* placesHere({ source, first, pages }: Same): Generator<[number, number]> {
    for (let page = first; page < first + pages; ) {
      const [address, run] = sources.get(source)?.run(page) ?? []
      if (address === undefined || run === undefined || run === 0 || address % PAGE_BYTES !== 0) {
        throw new Fault('FORMAT', `page ${page} of channel ${source} has not come`)
      }
      const some = Math.min(run, first + pages - page)
      yield [address, some * PAGE_BYTES]
      page += some
    }
  }

  return {
    opened(channel, { shared }) {
      if (options.offer !== undefined && shared !== undefined) sources.set(channel, shared)
    },
    take(frame, image) {
      const [{ shared }, { offer }] = [image.writer, options]
      if (offer === undefined || shared === undefined || image.size % PAGE_BYTES !== 0) throw unexpected(frame)
      const places = frame.source === OFFERED ? offer.places(frame.first, frame.pages) : placesHere(frame)
      for (const [address, bytes] of places) {
        image.sum.update(shared.take(address, bytes / PAGE_BYTES))
        image.size += bytes
      }
    },
    zeros(bytes, image) {
      const { shared } = image.writer
      if (options.offer === undefined || shared === undefined || (image.size % PAGE_BYTES) + (bytes % PAGE_BYTES) !== 0)
        return false
      for (const window of shared.zeros(bytes / PAGE_BYTES)) image.sum.update(window)
      image.size += bytes
      return true
    },
  }
}
