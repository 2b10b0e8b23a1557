import { type FrameName, frameType } from '../../lib/format/frame.ts'
import { taking } from '../../lib/stream/frames.ts'

/** For a reader that takes whatever comes. */
export const anyFrame = taking(...(Object.keys(frameType) as FrameName[]))
