import type { ImageEntry } from '../format/image-list.ts'
import type { ImageName } from '../format/names.ts'
import type { Fd } from '../kernel/fd.ts'
import type { Condition } from './condition.ts'

/** What an image is made of: a pipe (or a socket) that CRIU fills, or pieces of memory. */
export type ImageBody =
  /** `begun`: bytes that were read of the image already. */
  | { kind: 'pipe'; fd: Fd; begun?: Uint8Array }
  /** `meanwhile`: other images come at the same time, and do not wait for the end of this one. */
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
  /** Notified when CRIU has sent something of images that are not open yet. */
  readonly news?: Condition | undefined
}

/** Takes the images of one snapshot. */
export interface ImageSink {
  /** About `bytes` bytes will come. Returns how many are ready for them; fewer are not an error. */
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
  /** Takes pages that lie here already, and need not be written. */
  readonly shared?: SharedPages
}

/** An image of pages, some of which it shares with others. Called between whole pages. */
export interface SharedPages {
  /** Where a page of this image lies, and how many lie there in a row; undefined for one that has not come. */
  run(page: number): [address: number, pages: number] | undefined
  /** The next pages are those at `address`, all in one extent. Returns their bytes. Throws `MEMORY`. */
  take(address: number, pages: number): Uint8Array
  /** The next `pages` pages are zeros. Yields their bytes. */
  zeros(pages: number): Iterable<Uint8Array>
}
