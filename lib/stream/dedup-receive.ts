/** Pages that are not sent again: the receiver has them, in what it offered or in this snapshot, or they are zeros. */
import { Fault } from '../fault.ts'
import type { FrameOf } from '../format/frame-types.ts'
import { OFFERED } from '../format/page-digest.ts'
import { PAGE_BYTES } from '../format/pagemap.ts'
import { unexpected } from './frames.ts'
import type { SharedPages } from './image.ts'
import type { IncomingImage } from './incoming-image.ts'

/** The pages that a sender may name. */
export interface Offered {
  /**
   * Where `pages` pages lie, from number `first` on: each address and its bytes are in one extent. Throws `FORMAT` for
   * pages that were not offered, `MEMORY` for pages whose memory was taken back.
   */
  places(first: number, pages: number): Iterable<[address: number, bytes: number]>
  /** Called for each frame: the sender is not silent. */
  used(): void
}

/** Takes the pages that do not come again into the images of one snapshot. */
export class DedupReceiver {
  /** `offer` is filled in only when the snapshot is known to be part of a chain. */
  readonly #options: { readonly offer?: Offered | undefined }
  /** The images of pages of this snapshot, by channel. */
  readonly #sources = new Map<number, SharedPages>()

  constructor(options: { readonly offer?: Offered | undefined }) {
    this.#options = options
  }

  /** `image` comes on `channel`. */
  opened(channel: number, { writer: { shared } }: IncomingImage): void {
    if (this.#options.offer !== undefined && shared !== undefined) this.#sources.set(channel, shared)
  }

  /** The pages that `frame` names are next in `image`. Throws `FORMAT` for pages that are not here, `MEMORY`. */
  take(frame: FrameOf<'same'>, image: IncomingImage): void {
    const [{ shared }, { offer }] = [image.writer, this.#options]
    if (offer === undefined || shared === undefined || image.size % PAGE_BYTES !== 0) throw unexpected(frame)
    const places = frame.source === OFFERED ? offer.places(frame.first, frame.pages) : this.#placesHere(frame)
    for (const [address, bytes] of places) image.add(shared.take(address, bytes / PAGE_BYTES))
  }

  /** `bytes` zero bytes are next in `image`. Returns false where they must be written. Throws `MEMORY`. */
  zeros(bytes: number, image: IncomingImage): boolean {
    const { shared } = image.writer
    const whole = (image.size % PAGE_BYTES) + (bytes % PAGE_BYTES) === 0
    if (this.#options.offer === undefined || shared === undefined || !whole) return false
    for (const window of shared.zeros(bytes / PAGE_BYTES)) image.add(window)
    return true
  }

  /** Where pages of this snapshot lie, as addresses and bytes. */
  *#placesHere({ source, first, pages }: FrameOf<'same'>): Generator<[number, number]> {
    for (let page = first; page < first + pages; ) {
      const [address, run] = this.#sources.get(source)?.run(page) ?? []
      if (address === undefined || run === undefined || run === 0 || address % PAGE_BYTES !== 0) {
        throw new Fault('FORMAT', `page ${page} of channel ${source} has not come`)
      }
      const some = Math.min(run, first + pages - page)
      yield [address, some * PAGE_BYTES]
      page += some
    }
  }
}
