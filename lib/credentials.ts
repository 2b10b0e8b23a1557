/** What guards a TCP link: the files that the command line names. They are read for every link anew. */
export type Credentials =
  /** A certificate at both ends, of one CA. */
  | { kind: 'tls'; ca: string; cert: string; key: string; crl: string | undefined; anyName: boolean }
  /** The same random bytes at both ends. */
  | { kind: 'key'; key: string }
