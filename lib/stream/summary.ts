import { Fault } from '../fault.ts'
import { digest } from '../format/digest.ts'
import { encodeImageList, type ImageEntry } from '../format/image-list.ts'
import { INVENTORY } from '../format/names.ts'

/** What is known of a snapshot when all its images have gone, or come. */
export interface Snapshot {
  images: ImageEntry[]
  /** The digest of the list of images. */
  digest: bigint
  /** Bytes in all images. */
  bytes: number
}

/**
 * Describes a complete set of images. Throws `FAILED_DUMP` where inventory.img is missing, which a `round` of a chain
 * does not need.
 */
export function summarize(images: ImageEntry[], round = false): Snapshot {
  if (!round && !images.some((image) => image.name === INVENTORY)) throw unfinished()
  const list = digest()
  list.update(encodeImageList(images))
  return { images, digest: list.finish(), bytes: images.reduce((sum, image) => sum + image.size, 0) }
}

/** The fault of a dump that ended without inventory.img. */
export function unfinished(): Fault {
  return new Fault('FAILED_DUMP', `the dump did not finish: ${INVENTORY} is missing`, {
    hint: "the process was not moved; see the dump's own log",
  })
}
