/** The stage `directory`: the images that a finished dump left. */
import { checkPagemaps } from '../format/pagemap.ts'
import { type ImageStream, imageStream } from '../stream/image-stream.ts'
import { directorySource, listImages } from './directory.ts'
import { chainOf, chainSource } from './directory-chain.ts'

/**
 * The first stage of a sender: the images that `criu dump -D` left in `path`, with the pages of its parents where the
 * dump is incremental. Throws `MISSING`, `NAME`, `FORMAT`, `FAILED_DUMP` or `IO`.
 */
export function directory(path: string): ImageStream {
  const chain = chainOf(path)
  checkPagemaps(listImages(path), ` in ${path}`)
  return imageStream(chain.length === 1 ? directorySource(path) : chainSource(chain))
}
