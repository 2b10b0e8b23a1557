import type { Report } from '../progress.ts'
import { type Compress, checkCompress } from './compress.ts'
import { RateLimit } from './rate-limit.ts'

/** How images are put on the link. */
export interface Tuning {
  /** As they are if undefined. */
  compress?: Compress | undefined
  /** As fast as the link is if undefined. */
  limit?: RateLimit | undefined
  /** Nobody computes digests of what is in images: only their sizes are compared. */
  unchecked?: boolean
  /** What a receiver has already is not sent, where it says what it has; else this is called. */
  dedup?: (() => void) | undefined
}

interface Sending {
  compress: Compress | undefined
  /** Bytes a second. */
  rate: number | undefined
  unchecked: boolean
  dedup: boolean
}

/** From what a user asks for. Everything that is sent with it shares its rate. Throws `IO` where a library is not installed. */
export function tuningOf({ compress, rate, unchecked, dedup }: Sending, report: Report = () => {}): Tuning {
  if (compress !== undefined) checkCompress(compress)
  let said = false
  const unoffered = (): void => {
    if (!said) report({ event: 'nothing offered' })
    said = true
  }
  const limit = rate === undefined ? undefined : new RateLimit(rate)
  return { compress, limit, unchecked, ...(dedup && { dedup: unoffered }) }
}
