"""OpenAI's dialect: its requests and answers, translated to and from the one way of generating."""
