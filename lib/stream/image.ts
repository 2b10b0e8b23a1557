import type { ImageEntry } from '../format/image-list.ts'
import type { ImageName } from '../format/names.ts'
import type { Fd } from '../kernel/fd.ts'
import type { Condition } from './condition.ts'

/** What an image is made of: a pipe (or a socket) that CRIU fills, or pieces of memory. */
export type ImageBody =
  /** `begun`: what was read of it already. */
  | { kind: 'pipe'; fd: Fd; begun?: Uint8Array }
  /** `meanwhile`: they come while other images do, which do not wait for their end. */
  | { kind: 'pieces'; pieces: AsyncIterable<Uint8Array> | Iterable<Uint8Array>; meanwhile?: boolean }

/** One image as it is opened. Several may be open at a time. */
export interface OpenImage {
  name: ImageName
  body: ImageBody
}

/** Yields the images of one snapshot in the order in which they are opened; ends when there are no more. */
export interface ImageSource {
  readonly images: AsyncIterable<OpenImage>
  /** Stops the source; `images` throws `reason`. */
  destroy(reason: Error): void
  /** Tells when something has come of images that are not open yet. */
  readonly news?: Condition | undefined
}

/** Takes the images of one snapshot. */
export interface ImageSink {
  /** About this many bytes will come. Returns how many are ready for them; what is missing is not an error. */
  reserve?(bytes: number): Promise<number>
  /** Throws `MEMORY`, `EXISTS` or `IO`. */
  open(name: ImageName): ImageWriter | Promise<ImageWriter>
}

/** Takes one image, without a copy where the sink is memory. */
export interface ImageWriter {
  /** Where the next bytes go: at least one byte, perhaps more than `wanted`. Valid until `wrote`. */
  room(wanted: number): Uint8Array
  /** `bytes` bytes of the last `room` are filled. */
  wrote(bytes: number): void | Promise<void>
  /** The image is complete and its contents are what the sender announced. */
  end(entry: ImageEntry): void | Promise<void>
  /** Where pages need not be written that lie here already. */
  readonly shared?: SharedPages
}

/** An image of pages, some of which are elsewhere as well. Between whole pages. */
export interface SharedPages {
  /** Where a page of this image lies, and how many lie behind it; undefined for one that has not come. */
  run(page: number): [address: number, pages: number] | undefined
  /** The pages at this address, all in one extent, come next. Returns them. Throws `MEMORY`. */
  take(address: number, pages: number): Uint8Array
  /** So many pages of zeros come next. Yields them. */
  zeros(pages: number): Iterable<Uint8Array>
}
