import { type Limit, rateLimit } from './limit.ts'
import { type Compress, checkCompress } from './packing.ts'

/** How images are put on the link. */
export interface Tuning {
  /** As they are if undefined. */
  compress?: Compress | undefined
  /** As fast as the link is if undefined. */
  limit?: Limit | undefined
  /** Nobody computes digests of what is in images: only their sizes are compared. */
  unchecked?: boolean
}

interface Sending {
  compress: Compress | undefined
  /** Bytes a second. */
  rate: number | undefined
  unchecked: boolean
}

/** From what a user asks for. Everything that is sent with it shares its rate. Throws `IO` where a library is not installed. */
export function tuningOf({ compress, rate, unchecked }: Sending): Tuning {
  if (compress !== undefined) checkCompress(compress)
  return { compress, limit: rate === undefined ? undefined : rateLimit(rate), unchecked }
}
