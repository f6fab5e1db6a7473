export * from "./client.js";
export {
  ApiError,
  ConnectionFailed,
  DeadlineExceeded,
  GenerationFailed,
  InvalidRequest,
  NotFound,
  Overloaded,
  PolyprefixError,
  Unauthorized,
  Unavailable,
  UnexpectedAnswer,
  ValidationFailed,
} from "./errors.js";
export type { components, paths } from "./openapi.js";
